"""VICReg: equal views, spread dimensions, no covariance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import ComponentConfig, Head, Loss, LossInput, Slot, slot
from sslkit.nn.numerics import full_precision, without_autocast

from .joint_embedding import JointEmbedding
from .view_pairs import mean_over_pairs, off_diagonal


def vicreg_terms(z_a: Tensor, z_b: Tensor, eps: float = 1e-4) -> Tensor:
    """(3,): invariance, variance and covariance of two views, unweighted.

    z_a, z_b: (B, D), unnormalised. Invariance is the mean squared difference of entries; variance
    the mean over dimensions of relu(1 - S), S = sqrt(variance + eps), and over both views;
    covariance the squares off the diagonal of the covariance matrix, summed, divided by D, and
    summed over both views. Variances are unbiased. In float32 (float64 stays), outside autocast.
    Source: Bardes et al. 2022, arXiv 2105.04906, and its code, whose mean over views the variance
    is: a sum would double its weight.
    """
    with without_autocast(z_a):
        pair = torch.stack([full_precision(z_a), full_precision(z_b)])
        invariance = F.mse_loss(pair[0], pair[1])
        centred = pair - pair.mean(dim=1, keepdim=True)
        degrees = centred.shape[1] - 1
        deviation = (centred.square().sum(dim=1) / degrees + eps).sqrt()
        variance = F.relu(1.0 - deviation).mean()
        covariance = centred.mT @ centred / degrees
        squares = torch.stack([off_diagonal(each).square().sum() for each in covariance]).sum()
        return torch.stack([invariance, variance, squares / covariance.shape[-1]])


class VICRegLoss(Loss):
    """Invariance to the view, a hinge on the deviation of each dimension, and no covariance between
    dimensions. See `vicreg_terms`. 24.75 with the default weights where all embeddings are equal.
    """

    class Config(ComponentConfig):
        invariance_weight: NonNegativeFloat = 25.0
        """Weight of the mean squared difference of two views, lambda of the paper."""
        variance_weight: NonNegativeFloat = 25.0
        """Weight of the hinge on deviations, mu of the paper. Without it training collapses."""
        covariance_weight: NonNegativeFloat = 1.0
        """Weight of the covariance, nu of the paper."""
        eps: PositiveFloat = 1e-4
        """Added to the variance of each dimension, under the root."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        config = self.config
        invariance, variance, covariance = self._terms(inputs).unbind()
        return (
            config.invariance_weight * invariance
            + config.variance_weight * variance
            + config.covariance_weight * covariance
        )

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        names = ("invariance", "variance", "covariance")
        return dict(zip(names, self._terms(inputs).unbind(), strict=True))

    def _terms(self, inputs: LossInput) -> Tensor:
        return mean_over_pairs(inputs.views, lambda a, b: vicreg_terms(a, b, self.config.eps))


class VICReg(JointEmbedding):
    """Projections of two views are equal, each dimension is spread over the batch, and dimensions
    do not vary together.

    The defaults are the reference code's. Source: Bardes et al. 2022, arXiv 2105.04906.
    """

    class Config(JointEmbedding.Config):
        projector: Slot[Head] = slot(
            "mlp", num_layers=3, hidden_dim=8192, out_dim=8192, hidden_bias=True, output_norm="none"
        )
        """Maps features to the projection that the loss sees; the paper's expander."""
        loss: Slot[Loss] = slot("vicreg")
        """Loss on the projections of all views."""
