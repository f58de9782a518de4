"""Losses on embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass
from .component import Component
from .schedules import Progress


@dataclass(frozen=True)
class LossInput:
    """What a method hands to its loss. Embeddings are unnormalised unless the loss says so."""

    views: tuple[Tensor, ...]
    """V tensors (B, D): row i of each is a view of image i."""
    labels: Tensor | None = None
    """(B,) int64; present where the loss requires "labels"."""
    negatives: Tensor | None = None
    """(K, D) further negatives, such as a queue; present where the loss requires "negatives"."""
    progress: Progress | None = None
    """Where training stands, for losses whose numbers follow a schedule; None outside a run."""


class Loss(Component, nn.Module, ABC):
    """A loss on embeddings: a scalar, computed in float32. Constructed as `cls(config)`."""

    kind = "loss"
    requires: ClassVar[frozenset[Literal["labels", "negatives"]]] = frozenset()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, inputs: LossInput) -> Tensor: ...

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        """Scalars worth watching, without gradient; called at log steps only."""
        return {}


def rewards_collapse(loss: Loss) -> bool:
    """Whether a loss is no higher when all embeddings are equal than when each image has its own:
    then nothing in it keeps images apart. Tried on small embeddings; False where that fails."""
    labels, first = torch.arange(4), Progress(0, 1, 1)
    apart = torch.eye(4, 8)
    negatives = torch.eye(8)[4:] if "negatives" in loss.requires else None
    try:
        with torch.no_grad():
            equal = apart[:1].expand(4, 8)
            collapsed = loss(LossInput((equal, equal), labels, negatives, first))
            return bool(
                collapsed <= loss(LossInput((apart, apart), labels, negatives, first)) + 1e-6
            )
    except Exception:  # a plugin's, which may need other embeddings: no reason to warn
        return False
