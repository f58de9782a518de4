"""Methods with one fault each, as people make them, and a sound one that they differ from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    ParamGroup,
    Progress,
    RunFacts,
    StepOutput,
)
from sslkit.nn.deferred import Deferred
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import normalize, nt_xent, sup_con

WIDTH = 12


class Sound(Method):
    """A teacher, a centre and a contrastive loss: nothing is wrong with it."""

    class Config(ComponentConfig):
        temperature: float = 0.2
        """Temperature of the softmax."""

    centre: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head: nn.Module = nn.Sequential(
            nn.Linear(backbone.num_features, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
        )  # fmt: skip
        self.teacher: nn.Module = EMATeacher(self.networks)
        self.register_buffer("centre", torch.zeros(WIDTH))

    @property
    def networks(self) -> nn.Module:
        return nn.Sequential(self.backbone, self.head)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        features = torch.stack([self.backbone(view) for view in batch.views], dim=1)
        z = torch.stack([self.head(features[:, view]) for view in range(2)], dim=1)
        return {"features": features, "z": z, "taught": self.taught(batch)}

    def taught(self, batch: Batch) -> Tensor:
        return torch.stack([self.teacher(view) for view in batch.views], dim=1)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, taught = embeddings["z"], embeddings["taught"] - self.centre
        contrast = nt_xent(z[:, 0], z[:, 1], self.config.temperature)
        follow = (normalize(z) - normalize(taught).flip(1)).square().sum(-1).mean()
        loss, spread = contrast + follow, z.detach().std()
        return StepOutput(loss, Deferred(lambda: {"spread": spread}), taught.detach())

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup([(n, p) for n, p in self.named_parameters() if p.requires_grad])]

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.centre.lerp_(carry.mean(dim=(0, 1)).to(self.centre), 0.1)
        self.follow()

    def follow(self) -> None:
        assert isinstance(self.teacher, EMATeacher)
        self.teacher.update(self.networks, 0.9)


class GlobalNoise(Sound):
    """Adds noise from numpy's global generator."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        noise = np.random.normal(size=found["z"].shape)  # noqa: NPY002
        return {**found, "z": found["z"] + 0.01 * torch.from_numpy(noise).to(found["z"])}


class StateInObjective(Sound):
    """Moves its centre where the loss is computed."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        self.centre.lerp_(embeddings["taught"].mean(dim=(0, 1)).to(self.centre), 0.1)
        return super().objective(embeddings, batch, progress)


class StateInEmbed(Sound):
    """Counts the images that it has embedded."""

    seen: Tensor

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.register_buffer("seen", torch.zeros(()))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        self.seen += len(batch)
        return super().embed(batch)


class GradientIntoTeacher(Sound):
    """A teacher that is a plain copy of the networks, and takes part in the graph."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        assert isinstance(self.teacher, EMATeacher)
        self.teacher = self.teacher.module.requires_grad_(True)

    def follow(self) -> None:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.networks.parameters(), strict=True)
            for mine, theirs in pairs:
                mine.lerp_(theirs, 0.1)


class TeacherInGroups(Sound):
    """A teacher without a part in the graph, of which the optimiser is told all the same."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.teacher.requires_grad_(True)

    def taught(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return super().taught(batch)


class UnusedHead(Sound):
    """A layer that nothing passes through is trained."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.unused = nn.Linear(WIDTH, WIDTH)


class OwnNorm(nn.Module):
    """BatchNorm written by hand: of the images that are here."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values - self.mean
        return (values - values.mean(0)) / (values.var(0) + 1e-5).sqrt()


class PerRankStatistics(Sound):
    """Normalises over the images that are on this rank."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = nn.Sequential(nn.Linear(backbone.num_features, WIDTH), OwnNorm())
        self.teacher = EMATeacher(self.networks)


class LabelsOutOfLine(Sound):
    """Puts its rows image after image and cuts them as if they lay view after view."""

    requires_labels = True

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        assert batch.labels is not None
        first, second = embeddings["z"].flatten(0, 1).chunk(2)
        loss = sup_con((first, second), batch.labels, 0.2)
        return StepOutput(loss, carry=embeddings["taught"].detach())


class StaleMetric(Sound):
    """Logs what the step before has left on `self`."""

    last = 0.0

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        return StepOutput(output.loss, {"centre_norm": self.last}, output.carry)

    def after_step(self, progress: Progress, carry: Any) -> None:
        super().after_step(progress, carry)
        self.last = float(self.centre.norm())


class ForgottenState(Sound):
    """A count that no checkpoint holds decides on the loss."""

    steps = 0

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        return StepOutput(output.loss / (1 + 0.1 * self.steps), output.metrics, output.carry)

    def after_step(self, progress: Progress, carry: Any) -> None:
        super().after_step(progress, carry)
        self.steps += 1


class MasksByPlace(Sound):
    """Hides pixels by torch's generator: other ones on each rank and in each micro-batch."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return {**found, "z": found["z"] * (torch.rand_like(found["z"]) < 0.7)}


class CentresRows(Sound):
    """Subtracts the mean of the images that pass together."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return {**found, "z": found["z"] - found["z"].mean(0)}


class PeeksAtLabels(Sound):
    """Uses labels where there are some, and says nothing of it."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        if batch.labels is None:
            return output
        z = embeddings["z"]
        helped = sup_con((z[:, 0], z[:, 1]), batch.labels, 0.2)
        return StepOutput(output.loss + helped, output.metrics, output.carry)


class NotFinite(Sound):
    """Divides by the deviation of the batch."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"]
        scaled = (z - z.mean(0)) / z.std(0)
        output = super().objective({**embeddings, "z": scaled}, batch, progress)
        return StepOutput(output.loss, carry=output.carry)


class WatchesNothing(Sound):
    """Names an entry that `embed` does not give."""

    must_not_collapse: Mapping[str, Apart] | None = {"projection": "spread"}


class TrainingMetric(Sound):
    """Adds to the gradient where a metric is read."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)

        def compute() -> dict[str, Tensor]:
            with torch.enable_grad():
                penalty = sum(p.square().sum() for p in self.head.parameters())
                assert isinstance(penalty, Tensor)
                penalty.backward()  # type: ignore[no-untyped-call]
            return {"penalty": penalty.detach()}

        return StepOutput(output.loss, Deferred(compute), output.carry)


class ReadsViews(Sound):
    """Reconstructs pixels of views that the objective is not given in micro-batches."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        target = batch.views[0].mean(dim=(1, 2, 3))
        error = (embeddings["z"][:, 0].mean(1) - target).square().mean()
        return StepOutput(output.loss + error, output.metrics, output.carry)


class HalfLoss(Sound):
    """Gives its loss in half precision."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        if output.loss.dtype == torch.float64:
            return output
        return StepOutput(output.loss.bfloat16(), output.metrics, output.carry)


class Unseeded(Sound):
    """Draws from a generator of its own that nothing seeds."""

    def follow(self) -> None:
        assert isinstance(self.teacher, EMATeacher)
        self.teacher.update(self.networks, float(np.random.default_rng().uniform(0.8, 0.9)))


class Growing(Sound):
    """Remembers every step."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.history: list[Tensor] = []

    def after_step(self, progress: Progress, carry: Any) -> None:
        super().after_step(progress, carry)
        self.history.append(carry)


class FixedType(Sound):
    """Projects by a matrix of a fixed type."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z = embeddings["z"] @ torch.eye(WIDTH)
        return super().objective({**embeddings, "z": z}, batch, progress)


class OtherStart(Sound):
    """Begins from other weights where its encoder alone is used."""

    @classmethod
    def for_encoder(cls, config: Any, backbone: Backbone, facts: RunFacts) -> Method:
        nn.init.ones_(next(backbone.parameters()))
        return cls(config, backbone, facts)


class RefusesItsState(Sound):
    """Has no head where its encoder alone is used, and refuses the state of one that has."""

    @classmethod
    def for_encoder(cls, config: Any, backbone: Backbone, facts: RunFacts) -> Method:
        method = cls(config, backbone, facts)
        del method.head, method.teacher
        return method


class SilentField(Sound):
    """Has a field that nobody explains."""

    class Config(Sound.Config):
        strength: float = 1.0


class OddField(Sound):
    """Has a field that cannot be read from what is saved of it."""

    class Config(Sound.Config):
        weights: bytes = b"\xff\xfe"
        """Weights of the views."""


BROKEN: Mapping[type[Method], str] = {
    GlobalNoise: "no-global-random-numbers",
    StateInObjective: "objective-changes-no-state",
    StateInEmbed: "embed-changes-no-state",
    GradientIntoTeacher: "no-gradient-trains-a-teacher",
    TeacherInGroups: "no-gradient-trains-a-teacher",
    UnusedHead: "gradients-reach-what-is-trained",
    PerRankStatistics: "ranks-agree",
    LabelsOutOfLine: "loss-does-not-depend-on-order",
    StaleMetric: "metrics-are-of-their-step",
    ForgottenState: "state-is-complete",
    MasksByPlace: "embed-draws-by-sample",
    CentresRows: "embed-treats-rows-alone",
    PeeksAtLabels: "labels-are-asked-for",
    NotFinite: "collapse-is-finite",
    WatchesNothing: "trains",
    TrainingMetric: "reading-metrics-changes-nothing",
    ReadsViews: "micro-batches-are-exact",
    HalfLoss: "half-precision-is-safe",
    Unseeded: "steps-repeat",
    Growing: "memory-does-not-grow",
    FixedType: "constants-follow-their-inputs",
    OtherStart: "encoder-alone-is-the-same",
    RefusesItsState: "encoder-alone-is-the-same",
    SilentField: "its-fields-are-described",
    OddField: "its-configuration-can-be-written-and-read",
}
"""Method -> the one law that it breaks."""
