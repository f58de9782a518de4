"""SIGReg: embeddings are to be normally distributed along every direction."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslkit.api import ComponentConfig, Loss, LossInput
from sslkit.nn.numerics import full_precision, without_autocast

from .directions import unit_directions
from .view_pairs import check_views

_AT_ONCE = 1 << 23
"""Numbers of images x directions x knots that are computed at once, 32 MiB in float32: all that a
batch of 256 has by default."""


def epps_pulley(samples: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """The statistic of Epps and Pulley of how far samples are from N(0, 1): (B, S), S times B
    samples, to (S,).

    B times the integral over t of |mean exp(i t x) - exp(-t²/2)|² exp(-t²/2), by the trapezoidal
    rule on `knots` points from 0 to `t_max`, and twice that, since it is the same for -t. Of B
    normal samples it is 1.052 on average for any B; where all are 0 it is 0.40205 B.
    Source: Balestriero and LeCun 2025, arXiv 2511.08544, and its code.
    """
    t = torch.linspace(0.0, t_max, knots, dtype=samples.dtype, device=samples.device)
    normal = (-t.square() / 2.0).exp()
    weights = torch.full_like(t, 2.0 * t_max / (knots - 1))
    weights[0] = weights[-1] = t_max / (knots - 1)
    angles = samples[..., None] * t
    real, imaginary = angles.cos().mean(dim=0), angles.sin().mean(dim=0)
    apart = (real - normal).square() + imaginary.square()
    return len(samples) * (apart * (weights * normal)).sum(dim=-1)


def epps_pulley_in_parts(samples: Tensor, knots: int, t_max: float) -> Tensor:
    """`epps_pulley` in memory of a few columns: some at a time, and again for the gradient, so many
    as follow from the shape."""
    columns = max(1, _AT_ONCE // (len(samples) * knots))
    if columns >= samples.shape[1]:
        return epps_pulley(samples, knots, t_max)
    parts = [
        checkpoint(epps_pulley, part, knots, t_max, use_reentrant=False, preserve_rng_state=False)
        for part in torch.split(samples, columns, dim=1)
    ]
    return torch.cat(parts)


class SIGReg(Loss):
    """Sketched isotropic Gaussian regularisation: the mean over views and random directions of
    `epps_pulley` of the embeddings along them.

    The directions are drawn anew in each step, the same on every rank. At a collapse to 0 it is
    0.40205 B with a gradient of 0, so that it has to be prevented from the start.
    """

    requires = frozenset({"random"})

    class Config(ComponentConfig):
        directions: PositiveInt = 1024
        """Random directions of a step."""
        knots: int = Field(default=17, ge=2)
        """Points of the integral from 0 to `t_max`."""
        t_max: PositiveFloat = 3.0
        """Largest frequency at which distributions are compared."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        check_views(inputs.views, 1)
        config, first = self.config, inputs.views[0]
        with without_autocast(first):
            along = unit_directions(inputs, "sigreg", config.directions)
            statistics = [
                epps_pulley_in_parts(
                    full_precision(view) @ along, config.knots, config.t_max
                ).mean()
                for view in inputs.views
            ]
            return torch.stack(statistics).mean()
