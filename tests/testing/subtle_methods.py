"""More methods with one fault each, of the kinds that are found late."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from broken_methods import WIDTH, Sound
from torch import Tensor, nn

from sslkit.api import Apart, Backbone, Batch, Method, ParamGroup, Progress, RunFacts, StepOutput
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import nt_xent


class ShiftsViews(Sound):
    """Normalises views in place, which the next one to embed them finds shifted."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        for view in batch.views:
            view.sub_(0.1)
        return super().embed(batch)


class ShiftsEmbeddings(Sound):
    """Centres the teacher's embeddings in place."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        embeddings["taught"].sub_(0.1)
        return super().objective(embeddings, batch, progress)


class ExportsAnother(Sound):
    """Exports a copy of the backbone as it began."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.first = copy.deepcopy(backbone).requires_grad_(False)

    @property
    def encoder(self) -> Backbone:
        return self.first


class ByHash(Sound):
    """A momentum that follows the hash of a text."""

    def follow(self) -> None:
        assert isinstance(self.teacher, EMATeacher)
        self.teacher.update(self.networks, 0.5 + 0.4 * (hash("momentum") % 1000) / 1000)


class MadeLate(Sound):
    """Makes a layer when it sees the first batch: the optimiser does not know it, nor a new
    method to which the state is given."""

    late: nn.Module | None

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.late = None

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        if self.late is None:
            self.late = nn.Linear(WIDTH, WIDTH).to(found["z"])
        return {**found, "z": self.late(found["z"])}


class CountsInClass(Sound):
    """A count that all runs of a process share decides on the teacher."""

    steps: ClassVar[int] = 0

    def follow(self) -> None:
        assert isinstance(self.teacher, EMATeacher)
        type(self).steps += 1
        self.teacher.update(self.networks, 1.0 - 1.0 / (1 + type(self).steps))


class CountsInClosure(Sound):
    """The same in a variable of a function."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.momentum = _counting()

    def follow(self) -> None:
        assert isinstance(self.teacher, EMATeacher)
        self.teacher.update(self.networks, self.momentum())


def _counting() -> Callable[[], float]:
    steps = 0

    def momentum() -> float:
        nonlocal steps
        steps += 1
        return 1.0 - 1.0 / (1 + steps)

    return momentum


class UnsavedProjection(Sound):
    """Projects by random numbers that are drawn when it is made, and not saved."""

    fixed: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.register_buffer("fixed", torch.randn(WIDTH, WIDTH), persistent=False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return {**found, "z": found["z"] @ self.fixed}


class OneMemory(Sound):
    """Gives its embeddings in a tensor that it uses again."""

    memory: Tensor | None = None

    def taught(self, batch: Batch) -> Tensor:
        found = super().taught(batch)
        if self.memory is None or self.memory.shape != found.shape:
            self.memory = torch.empty_like(found)
        return self.memory.copy_(found)


class EntersQueueFirst(Sound):
    """The keys of a batch enter the queue before the loss takes its negatives from there."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.keys: deque[Tensor] = deque([torch.randn(16, WIDTH)], maxlen=1)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        self.keys.append(embeddings["taught"][:, 0].detach())
        output = super().objective(embeddings, batch, progress)
        near = (embeddings["z"][:, 0] @ self.keys[0].T.to(embeddings["z"])).logsumexp(1).mean()
        return StepOutput(output.loss + 0.1 * near, output.metrics, output.carry)


class OneMask(Sound):
    """The mask of the first image is that of the batch."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        kept = batch.random.uniform("mask", WIDTH)[:1] < 0.7
        return {**found, "z": found["z"] * kept[:, None]}


class NoiseByPlace(Sound):
    """Adds noise to images in the objective by their place in the batch."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"] + 0.1 * torch.randn_like(embeddings["z"])
        return super().objective({**embeddings, "z": z}, batch, progress)


class GlobalStart(Sound):
    """Draws its start from numpy."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        start = np.random.normal(size=WIDTH)  # noqa: NPY002
        self.centre.copy_(torch.from_numpy(start))


class GathersByHand(Sound):
    """Sums over ranks what every rank has of the whole batch."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        carry = output.carry.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(carry)
        return StepOutput(output.loss, output.metrics, carry)


class FailsOnOneRank(Sound):
    """Raises where it is not the first process: the others lose it in the middle of a message."""

    def after_step(self, progress: Progress, carry: Any) -> None:
        if self.world.rank == 1:
            raise ValueError("no weights here")
        super().after_step(progress, carry)


class NamesTwice(Sound):
    """Two groups with the same parameter."""

    def param_groups(self) -> list[ParamGroup]:
        (group,) = super().param_groups()
        return [group, ParamGroup(group.params[-1:], weight_decay_scale=0.0)]


class FewLabels(Sound):
    """Looks images up in a table that has no room for all of them."""

    table: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.register_buffer("table", torch.zeros(facts.batch_size, WIDTH))

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        pull = (embeddings["z"][:, 0] - self.table[batch.indices]).square().mean()
        return StepOutput(output.loss + pull, output.metrics, output.carry)


class OwnClock(Sound):
    """Warms up by the steps since it was made."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.clock = {"steps": 0}

    def before_step(self, progress: Progress) -> None:
        self.clock["steps"] += 1

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        warm = min(self.clock["steps"] / 5, 1.0)
        return StepOutput(warm * output.loss, output.metrics, output.carry)


class WatchesNumbers(Sound):
    """Watches an entry that is one number for each image."""

    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({"norm": "spread"})

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return {**found, "norm": found["z"].norm(dim=(1, 2))}


class RootOfNothing(Sound):
    """Takes a distance whose gradient is not finite where embeddings are equal."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        z = embeddings["z"]
        near = (z[1:, 0] - z[:-1, 0]).square().sum(-1).sum().sqrt()
        gone = (z[:, 0] - z[:, 0].mean(0)).square().sum().sqrt()
        return StepOutput(output.loss + 0.0 * near + gone / 10, output.metrics, output.carry)


class ComparesNothing(Sound):
    """Pairs each view with itself, which no law can forbid: the report says so."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, carry = embeddings["z"], embeddings["taught"].detach()
        return StepOutput(
            nt_xent(z[:, 0], z[:, 0], 0.2) + nt_xent(z[:, 1], z[:, 1], 0.2), {}, carry
        )


class OneViewOnly(Sound):
    """Uses one view of two."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, taught = embeddings["z"][:, 0], embeddings["taught"].detach()
        return StepOutput(nt_xent(z, taught[:, 0], 0.2), {}, taught)


class PlainConstant(Sound):
    """Weights dimensions by a constant that is no buffer, and stays on the CPU."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.weights = torch.linspace(0.5, 1.5, WIDTH)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        weighted = {**embeddings, "z": embeddings["z"] * self.weights}
        return super().objective(weighted, batch, progress)


class UnorderedGroups(Sound):
    """Sorts its parameters by shape, out of a set, which has those of one shape in the order in
    which they lie in memory: the optimiser's state comes back to others of the same shape."""

    def param_groups(self) -> list[ParamGroup]:
        (group,) = super().param_groups()
        by_shape = sorted(set(group.params), key=lambda pair: tuple(pair[1].shape))
        return [ParamGroup(by_shape)]


class IdleTeacher(Sound):
    """A teacher that follows, and that the loss forgets."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, taught = embeddings["z"], embeddings["taught"]
        return StepOutput(nt_xent(z[:, 0], z[:, 1], 0.2), carry=taught.detach())


SUBTLE: Mapping[type[Method], str] = {
    ShiftsViews: "what-it-is-given-stays",
    ShiftsEmbeddings: "what-it-is-given-stays",
    ExportsAnother: "encoder-is-trained",
    ByHash: "another-interpreter-repeats",
    MadeLate: "state-is-complete",
    CountsInClass: "steps-repeat",
    CountsInClosure: "state-is-complete",
    UnsavedProjection: "state-is-complete",
    OwnClock: "state-is-complete",
    OneMemory: "embed-changes-no-state",
    EntersQueueFirst: "objective-changes-no-state",
    OneMask: "embed-treats-rows-alone",
    PlainConstant: "constants-follow-their-inputs",
    NoiseByPlace: "loss-does-not-depend-on-order",
    GlobalStart: "no-global-random-numbers",
    GathersByHand: "ranks-agree",
    FailsOnOneRank: "ranks-agree",
    NamesTwice: "trains",
    UnorderedGroups: "resumed-equals-uninterrupted",
    FewLabels: "trains",
    WatchesNumbers: "collapse-is-watched",
    RootOfNothing: "collapse-is-finite",
}
"""Method -> the one law that it breaks."""
