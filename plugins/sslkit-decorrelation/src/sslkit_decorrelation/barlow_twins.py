"""Barlow Twins: the cross-correlation of two views is to be the identity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from sslkit.api import ComponentConfig, Head, Loss, LossInput, ParamGroup, Slot, slot
from sslkit.nn.numerics import full_precision, without_autocast

from .joint_embedding import JointEmbedding
from .view_pairs import mean_over_pairs, off_diagonal


def barlow_twins_terms(z_a: Tensor, z_b: Tensor, eps: float = 1e-5) -> Tensor:
    """(2,): the sums over the cross-correlation matrix of (C_ii - 1)^2, and of C_ij^2 with i != j.

    z_a, z_b: (B, D), unnormalised. Each dimension is shifted and scaled to mean 0 and variance 1
    over the batch, as by a BatchNorm without affine whose `eps` this is; C is the product over the
    batch, divided by B. In float32 (float64 stays), outside autocast.
    Source: Zbontar et al. 2021, arXiv 2103.03230, and its code.
    """
    with without_autocast(z_a):
        a, b = (_standardised(full_precision(z), eps) for z in (z_a, z_b))
        c = a.T @ b / len(a)
        on_diagonal = (c.diagonal() - 1.0).square().sum()
        return torch.stack([on_diagonal, off_diagonal(c).square().sum()])


def _standardised(z: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * (variance + eps).rsqrt()


class BarlowTwinsLoss(Loss):
    """The distance of the cross-correlation of two views from the identity: each dimension is to
    agree in both views and to say nothing about the others. See `barlow_twins_terms`.

    D dimensions that are independent in views and images have about D + redundancy_weight D²/B.
    """

    class Config(ComponentConfig):
        redundancy_weight: NonNegativeFloat = 0.0051
        """Weight of the entries off the diagonal, lambda of the paper."""
        eps: PositiveFloat = 1e-5
        """Added to the variance of each dimension, as in BatchNorm."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        on_diagonal, off = self._terms(inputs).unbind()
        return on_diagonal + self.config.redundancy_weight * off

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        on_diagonal, off = self._terms(inputs).unbind()
        return {"on_diagonal": on_diagonal, "off_diagonal": off}

    def _terms(self, inputs: LossInput) -> Tensor:
        eps = self.config.eps
        return mean_over_pairs(inputs.views, lambda a, b: barlow_twins_terms(a, b, eps))


class BarlowTwins(JointEmbedding):
    """Projections of two views agree in each dimension, and their dimensions are not redundant.

    The defaults are the reference code's. Watch `train/on_diagonal` and `train/off_diagonal`.
    Source: Zbontar et al. 2021, arXiv 2103.03230.
    """

    class Config(JointEmbedding.Config):
        projector: Slot[Head] = slot(
            "mlp", num_layers=3, hidden_dim=8192, out_dim=8192, output_norm="none"
        )
        """Maps features to the projection that the loss sees."""
        loss: Slot[Loss] = slot("barlow_twins")
        """Loss on the projections of all views."""
        bias_lr_scale: PositiveFloat = 0.024
        """Learning rate of biases and of normalisation as a part of that of weights; the reference
        code's 0.0048 of 0.2, for LARS, which adapts weights alone. 1 suits other optimisers."""

    config: Config

    def param_groups(self) -> list[ParamGroup]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        biases = [(name, p) for name, p in named if p.ndim < 2]
        weights = [(name, p) for name, p in named if p.ndim > 1]
        return [ParamGroup(weights), ParamGroup(biases, lr_scale=self.config.bias_lr_scale)]
