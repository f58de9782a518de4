"""Losses on embeddings that the methods of this package use."""

from __future__ import annotations

from torch import Tensor

from sslkit.api import Loss, LossInput
from sslkit.nn.functional import normalize


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

    def forward(self, inputs: LossInput) -> Tensor:
        if len(inputs.views) != 2:
            raise ValueError(f"negative_cosine compares 2 embeddings, not {len(inputs.views)}")
        prediction, target = inputs.views
        return negative_cosine(prediction, target)
