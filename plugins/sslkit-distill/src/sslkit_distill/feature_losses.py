"""Losses on embeddings that the methods of this package use."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from sslkit.api import ComponentConfig, Loss, LossInput
from sslkit.nn.functional import normalize
from sslkit.nn.numerics import without_autocast


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over B rows of -cos(p, z).

    prediction, target: (B, D), unnormalised; row i of each belongs to image i. -1 where they point
    the same way, 0 where they are orthogonal, 1 where they are opposite. Computed in float32
    (float64 stays). Raises ValueError for shapes that differ or are not (B, D).
    Source: Chen & He 2020, arXiv 2011.10566, equation 1.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must both be (B, D), "
            f"not {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    return -(normalize(prediction) * normalize(target)).sum(dim=1).mean()


class NegativeCosine(Loss):
    """Minus the cosine of the first view's embedding and the second's.

    The first is the prediction, the second its target. See `negative_cosine`.
    """

    num_views = 2

    def forward(self, inputs: LossInput) -> Tensor:
        if len(inputs.views) != 2:
            raise ValueError(
                f"negative_cosine compares 2 embeddings, not {len(inputs.views)}: set another "
                "method.loss, or make 2 views"
            )
        prediction, target = inputs.views
        return negative_cosine(prediction, target)


def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """The mean over B rows of -log of the distance to the nearest other row, on the unit sphere:
    the estimator of differential entropy of Kozachenko and Leonenko, up to constants and its sign.

    x: (B, D), unnormalised, B >= 2. eps is added to each component of a difference, and to the
    distance. -log(sqrt 2) for orthogonal rows, -log(eps (1 + sqrt D)) where each row is there
    twice. Computed in float32 (float64 stays). Raises ValueError for other shapes.
    Source: Sablayrolles et al. 2019, arXiv 1806.03198, and DINOv2's code.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"koleo needs (B, D) with B >= 2, not {tuple(x.shape)}")
    unit = normalize(x)
    with torch.no_grad(), without_autocast(unit):
        cosines = unit @ unit.T
        nearest = cosines.fill_diagonal_(-2.0).argmax(dim=1)
    distance = torch.linalg.vector_norm(unit - unit[nearest] + eps, dim=1)
    loss: Tensor = -(distance + eps).log().mean()
    return loss


class KoLeo(Loss):
    """Spreads the images of each view over the sphere: see `koleo`; the mean over views.

    DINOv2 adds a tenth of its sum over the global crops to DINO's loss, over the images of each
    process apart; here it is over the whole batch. Source: arXiv 2304.07193."""

    class Config(ComponentConfig):
        eps: PositiveFloat = 1e-8
        """Keeps logarithm and gradient finite where two images have one embedding."""

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        return torch.stack([koleo(view, self.config.eps) for view in inputs.views]).mean()
