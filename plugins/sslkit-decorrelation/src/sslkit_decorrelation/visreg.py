"""VISReg: centre, scale and shape of the embeddings, each regularised by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import ComponentConfig, Head, Loss, LossInput, Slot, slot
from sslkit.nn.numerics import full_precision, without_autocast

from .directions import unit_directions
from .lejepa import LeJEPA, Part
from .view_pairs import check_views

_LEAST = 1e-12
"""Added to a variance under the root, whose gradient would not be finite at 0."""


def visreg_terms(z: Tensor, along: Tensor, eps: float = 1e-4) -> Tensor:
    """(3,): centre, scale and shape of embeddings (B, D) along unit directions (D, S), unweighted.

    Centre is the mean over dimensions of mean², scale that of (deviation - 1)², the deviation
    biased. For the shape the embeddings are shifted by the mean and divided by deviation + eps,
    without gradient for the latter; sorted along each direction, they are compared with the
    quantiles i / (B + 1), i = 1 to B, of N(0, 1): the mean squared difference. In float32 (float64
    stays). Source: Wu et al. 2026, arXiv 2606.02572, and its code.
    """
    mean = z.mean(dim=0)
    deviation = ((z - mean).square().mean(dim=0) + _LEAST).sqrt()
    scaled = (z - mean) / (deviation.detach() + eps)
    ranks = torch.arange(1, len(z) + 1, dtype=z.dtype, device=z.device)
    quantiles = torch.special.ndtri(ranks / (len(z) + 1))
    shape = ((scaled @ along).sort(dim=0).values - quantiles[:, None]).square().mean()
    return torch.stack([mean.square().mean(), (deviation - 1.0).square().mean(), shape])


class VISRegLoss(Loss):
    """The mean over views of the distances of centre, scale and shape from those of N(0, 1). See
    `visreg_terms`. The directions are drawn anew in each step, the same on every rank.

    Where all embeddings are equal the scale is 1, and leaves a gradient of constant size as they
    come near it.
    """

    requires = frozenset({"random"})

    class Config(ComponentConfig):
        directions: PositiveInt = 4096
        """Random directions of a step, for the shape."""
        center_weight: NonNegativeFloat = 1.0
        """Weight of the mean."""
        scale_weight: NonNegativeFloat = 1.0
        """Weight of the deviation. Without it nothing keeps embeddings from shrinking."""
        shape_weight: NonNegativeFloat = 1.0
        """Weight of the distribution along random directions."""
        eps: PositiveFloat = 1e-4
        """Added to the deviation that the shape divides by."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        config = self.config
        center, scale, shape = self._terms(inputs).unbind()
        return (
            config.center_weight * center
            + config.scale_weight * scale
            + config.shape_weight * shape
        )

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        return dict(zip(("center", "scale", "shape"), self._terms(inputs).unbind(), strict=True))

    def _terms(self, inputs: LossInput) -> Tensor:
        check_views(inputs.views, 1)
        with without_autocast(inputs.views[0]):
            along = unit_directions(inputs, "visreg", self.config.directions)
            views = [full_precision(view) for view in inputs.views]
            return torch.stack([visreg_terms(z, along, self.config.eps) for z in views]).mean(dim=0)


class VISReg(LeJEPA):
    """LeJEPA's views and distance, with a regulariser in three parts that can be weighted apart and
    does not lose its gradient near a collapse.

    Source: Wu et al. 2026, arXiv 2606.02572.
    """

    class Config(LeJEPA.Config):
        projector: Slot[Head] = slot(
            "mlp",
            num_layers=3,
            hidden_dim=2048,
            out_dim=256,
            hidden_bias=True,
            activation="gelu",
            output_norm="none",
            output_bias=True,
        )
        """Maps features to the projection that the loss sees."""
        loss: Slot[Loss] = slot("visreg")
        """The regulariser, on the projections of all views."""
        loss_weight: Part = 0.9
        """Weight of the regulariser, lambda of the paper: 0.9 for ImageNet, 0.6 for small data; the
        distance of the views from the mean of the global ones has 1 - loss_weight."""
