"""SupCon's loss: NT-Xent in which all embeddings of a class are positives of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import Bounds, ComponentConfig, Loss, LossInput, ScheduledNumber, scheduled
from sslkit.nn.functional import DEFAULT_CHUNK_ELEMENTS, sup_con

Temperature = Annotated[ScheduledNumber, Bounds(gt=0.0)]


class SupConLoss(Loss):
    """Supervised contrastive loss with the sum outside of the logarithm, L_out of the paper: the
    mean over anchors of the mean cross entropy over their positives, which are all other embeddings
    of the class. See `sslkit.nn.functional.sup_con`.

    An image with a negative label has none, and is alone in its class: its other views are its
    positives, as in NT-Xent, and it is a negative for all others. Where all labels differ and there
    are two views, the loss is NT-Xent times temperature / base_temperature.
    """

    requires = frozenset({"labels"})

    class Config(ComponentConfig):
        temperature: Temperature = scheduled(0.1)
        """Softmax temperature."""
        base_temperature: PositiveFloat | None = 0.07
        """The loss is multiplied by temperature / base_temperature, 1.43 by default, as in the
        reference code. null: by 1."""
        chunk_elements: PositiveInt = DEFAULT_CHUNK_ELEMENTS
        """Similarities held in memory at a time. A batch of M embeddings has M²; fewer at a time
        need less memory and more, smaller steps. Changes the loss by rounding only."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        config = self.config
        temperature = config.temperature.at(inputs.progress)
        scale = temperature / config.base_temperature if config.base_temperature else 1.0
        labels = _labels(inputs)
        loss = sup_con(inputs.views, labels, temperature, chunk_elements=config.chunk_elements)
        return scale * loss

    @torch.no_grad()
    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        """positives: other embeddings of its class that an anchor has, on average; the number of
        views less one where no two images of the batch share a class."""
        labels = _labels(inputs)
        views = len(inputs.views)
        same = (labels[:, None] == labels[None]) & (labels[:, None] >= 0)
        others = same.sum(dim=1).clamp_min(1) - 1  # images; without a label 0
        return {"positives": (views - 1 + views * others).float().mean()}


def _labels(inputs: LossInput) -> Tensor:
    if inputs.labels is None:
        raise ValueError("supcon needs labels, and the method gave none")
    return inputs.labels
