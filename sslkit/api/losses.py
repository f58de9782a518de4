"""Losses on embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sslkit.randomness import SampleRandom

from .component import Component, Slot
from .schedules import Progress


@dataclass(frozen=True)
class LossInput:
    """What a method hands to its loss. Embeddings are unnormalised unless the loss says so."""

    views: tuple[Tensor, ...] = ()
    """V tensors (B, D): row i of each is a view of image i, and all play the same part."""
    labels: Tensor | None = None
    """(B,) int64; present where the loss requires "labels"."""
    negatives: Tensor | None = None
    """(K, D) further negatives, such as a queue; present where the loss requires "negatives"."""
    online: tuple[Tensor, ...] = ()
    """What the trained network gives, a tensor (B, D) for each view; where the loss requires
    "online"."""
    target: tuple[Tensor, ...] = ()
    """What it is to give, such as pixels or tokens; where the loss requires "target"."""
    teacher: tuple[Tensor, ...] = ()
    """What a teacher gives, a tensor (B, D) for each view that it sees, in the order of the views;
    where the loss requires "teacher". It sees the first ones, such as the global crops, so that
    `teacher[i]` and `online[i]` are of the same view, which most losses leave out as a pair."""
    random: SampleRandom | None = None
    """Keyed randomness of the images, `Batch.random`, for groups and directions that are the same
    on any rank; where the loss requires "random". What one draw gives the whole batch is keyed by
    its seed and by `progress.step`."""
    progress: Progress | None = None
    """Where training stands, for losses whose numbers follow a schedule; None outside a run."""

    def detach(self) -> LossInput:
        """The same without gradient."""
        found: dict[str, Any] = {}
        for part in ("views", "online", "target", "teacher"):
            found[part] = tuple(tensor.detach() for tensor in getattr(self, part))
        for part in ("labels", "negatives"):
            tensor = getattr(self, part)
            found[part] = None if tensor is None else tensor.detach()
        return replace(self, **found)


LossPart = Literal["labels", "negatives", "online", "target", "teacher", "random"]
_PARTS = {
    "views": "embeddings of views",
    "labels": "labels",
    "negatives": "further negatives",
    "online": "what the online network gives",
    "target": "targets",
    "teacher": "what a teacher gives",
    "random": "random numbers for each image",
}
"""What messages call the parts of `LossInput`."""


class Loss(Component, nn.Module, ABC):
    """A loss on embeddings: a scalar, computed in float32. Constructed as `cls(config)`.

    `forward` is given the whole batch, whatever the micro-batches, and may be called several times
    a step, so that it changes no state. State, such as a centre, lives in buffers, which
    checkpoints hold, and changes in `after_step`."""

    kind = "loss"
    requires: ClassVar[frozenset[LossPart]] = frozenset()
    """Parts of its input that it cannot do without, beside views. One that requires "online" works
    on roles and is taken to need no views."""
    num_views: ClassVar[int | None] = None
    """How many views it takes, where it does not take any number from two on."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, inputs: LossInput) -> Tensor: ...

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        """Scalars worth watching, without gradient, logged as `train/<name>`. Called at log steps
        only, with each input that `StepOutput.losses` names; the mean is logged. Where two losses
        of a method give one name, `train/<attribute>/<name>` says which."""
        return {}

    def after_step(self, progress: Progress, inputs: Sequence[LossInput]) -> None:
        """Called once after each optimiser step, before `Method.after_step`, without gradients.
        inputs: what `forward` was given in the step, one for each call, as `StepOutput.losses`
        says. progress: `progress.step` counts the step."""


def rewards_collapse(loss: Loss) -> bool:
    """Whether a loss is no higher when all embeddings are equal than when each image has its own:
    then nothing in it keeps images apart. Tried on small embeddings; False where that fails."""
    labels, first = torch.arange(4), Progress(0, 1, 1)
    apart = torch.eye(4, 8)
    negatives = torch.eye(8)[4:] if "negatives" in loss.requires else None
    random = SampleRandom(0, "loss", 0, labels)
    equal = apart[:1].expand(4, 8)
    views = loss.num_views or 2
    given = LossInput((equal,) * views, labels, negatives, random=random, progress=first)
    try:
        with torch.no_grad():
            collapsed, healthy = loss(given), loss(replace(given, views=(apart,) * views))
            return bool(collapsed <= healthy + 1e-6)
    except Exception:  # a plugin's, which may need other embeddings: no reason to warn
        return False


def missing_parts(
    slot: Slot[Loss],
    given: Collection[str] = ("labels",),
    views: bool = True,
    num_views: int | None = None,
) -> list[str]:
    """Why a method that gives its loss these parts cannot use this loss; for `Component.problems`.

    views: whether it gives `LossInput.views` beside them; False for a method that gives its loss
    roles alone, `online` with `teacher` or `target`. num_views: how many there are in each call of
    the loss; None where that is not known."""
    missing: list[str] = sorted(slot.cls.requires - set(given))
    if not views and "online" not in slot.cls.requires:
        missing = ["views", *missing]
    taken = slot.cls.num_views
    if not missing:
        if not views or None in (taken, num_views) or taken == num_views:
            return []
        return [
            f"{slot.name} takes {taken} views, and this method gives it {num_views}; choose "
            "another loss, or other views"
        ]
    *others, last = (_PARTS[part] for part in missing)
    wanted = f"{', '.join(others)} and {last}" if others else last
    return [f"{slot.name} needs {wanted}, which this method does not provide; choose another loss"]
