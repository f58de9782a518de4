"""BYOL's regression loss."""

from __future__ import annotations

from torch import Tensor

from sslkit.api import Loss, LossInput
from sslkit.nn.functional import normalize


def normalized_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over B rows of |p - z|^2 with p and z of unit length, which is 2 - 2 cos(p, z).

    prediction, target: (B, D), unnormalised; row i of each belongs to image i. 0 where they point
    the same way, 2 where they are orthogonal, 4 where they are opposite. Computed in float32
    (float64 stays). Raises ValueError for shapes that differ or are not (B, D).
    Source: Grill et al. 2020, arXiv 2006.07733, equation 2.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must both be (B, D), "
            f"not {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    cosine = (normalize(prediction) * normalize(target)).sum(dim=1)
    return (2.0 - 2.0 * cosine).mean()


class NormalizedMSE(Loss):
    """Squared distance of the first view's embedding from the second's, both of unit length.

    The first is the prediction, the second its target. See `normalized_mse`.
    """

    num_views = 2

    def forward(self, inputs: LossInput) -> Tensor:
        if len(inputs.views) != 2:
            raise ValueError(
                f"normalized_mse compares 2 embeddings, not {len(inputs.views)}: set another "
                "method.loss, or make 2 views"
            )
        prediction, target = inputs.views
        return normalized_mse(prediction, target)
