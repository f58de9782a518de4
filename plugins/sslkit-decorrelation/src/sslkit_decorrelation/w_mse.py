"""W-MSE: equal views, after the embeddings of groups of images have been whitened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sslkit.api import Batch, ComponentConfig, Head, Loss, LossInput, RunFacts, Slot, slot
from sslkit.nn.numerics import full_precision, normalize, without_autocast

from .joint_embedding import JointEmbedding
from .view_pairs import check_views, mean_over_pairs

_LEAST = 1e-24
"""Added to variances, so that embeddings that are all equal become zero and not undefined."""


def whiten(z: Tensor, eps: float = 1e-6) -> Tensor:
    """Embeddings (..., n, D) of n images, shifted and turned so that over the images their mean is
    0 and their covariance the identity: L^-1 (z - mean), C = L L' by Cholesky, C divided by n - 1.

    What is inverted is (1 - eps) C + eps (tr C / D) I, which has an inverse for any embeddings, and
    shrinks alike at any scale. In float64 where the device has it: of D dimensions from 2 D images
    some vary a thousand times less than others. Returned in the type of z.
    Source: Ermolov et al. 2021, arXiv 2007.06346.
    """
    wide = z if z.device.type == "mps" else z.double()
    centred = wide - wide.mean(dim=-2, keepdim=True)
    covariance = centred.mT @ centred / max(z.shape[-2] - 1, 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(z.shape[-1], dtype=wide.dtype, device=z.device)
    shrunk = (1.0 - eps) * covariance + (eps * variance + _LEAST) * eye
    factor, _ = torch.linalg.cholesky_ex(shrunk)
    white: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
    return white.to(z.dtype)


class WMSELoss(Loss):
    """The mean over pairs of views of 2 - 2 cos, between embeddings that are whitened: equal ones
    cannot be, and dimensions have to say different things. 0 where the views are equal, 2 where
    they have nothing in common, and at a collapse. See `whiten`.

    Each view is whitened by itself, in groups of images that are the same for all views and drawn
    anew in each step, by image, so that they are the same on any rank.
    """

    requires = frozenset({"random"})

    class Config(ComponentConfig):
        group_size: int = Field(default=128, ge=2)
        """Images that are whitened together, at least twice the width of the embedding. The batch
        is divided into as many groups as have this size, equal or one image apart; a smaller one
        is one group."""
        divisions: PositiveInt = 1
        """Times that a batch is divided into groups, whose losses are averaged."""
        eps: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-6
        """Part of the mean variance in the covariance that is inverted. 1 only shifts and scales:
        all dimensions may come to say the same."""

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if config.eps == 1.0:
            yield "eps", "1 whitens nothing, so that all dimensions may say the same; set 1e-6"

    config: Config

    def forward(self, inputs: LossInput) -> Tensor:
        check_views(inputs.views)
        if inputs.random is None:
            raise ValueError("w_mse needs the random numbers of the images, and got none")
        with without_autocast(inputs.views[0]):
            z = torch.stack([full_precision(view) for view in inputs.views])
            words = inputs.random.bits("groups", 2 * self.config.divisions)
            orders = ((words[:, ::2] << 31) | (words[:, 1::2] >> 1)).T.argsort(stable=True)
            return torch.stack([self._loss(z[:, order]) for order in orders]).mean()

    def _loss(self, z: Tensor) -> Tensor:
        """Of views (V, B, D) whose neighbouring rows are whitened together."""
        groups = z.tensor_split(max(1, z.shape[1] // self.config.group_size), dim=1)
        white = torch.cat([whiten(group, self.config.eps) for group in groups], dim=1)
        return mean_over_pairs(
            normalize(white).unbind(), lambda a, b: 2.0 - 2.0 * (a * b).sum(dim=1).mean()
        )


class WMSE(JointEmbedding):
    """Projections of all views of an image are equal after whitening.

    Each view passes the backbone by itself, and all together the projector, which then has the
    batch statistics of all views, as in the paper's code. The defaults are those for CIFAR-10; the
    paper has two views, or four. Source: Ermolov et al. 2021, arXiv 2007.06346.
    """

    class Config(JointEmbedding.Config):
        projector: Slot[Head] = slot(
            "mlp",
            hidden_dim=1024,
            out_dim=64,
            hidden_bias=True,
            output_norm="none",
            output_bias=True,
        )
        """Maps features to the projection that the loss sees."""
        loss: Slot[Loss] = slot("w_mse")
        """Loss on the projections of all views."""

    @classmethod
    def warnings(cls, config: JointEmbedding.Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from super().warnings(config, facts)
        width = getattr(config.projector.config, "out_dim", None)
        size = getattr(config.loss.config, "group_size", None)
        if width is None or size is None:
            return
        together = min(size, facts.batch_size)
        if together < 2 * width:
            yield (
                "loss.group_size",
                f"{together} images are whitened together in {width} dimensions, which leaves "
                f"mostly noise; the paper has {2 * width} or more: raise it with train.batch_size, "
                "or lower projector.out_dim",
            )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, V, F) and z (B, V, D)."""
        features = [self.backbone(view) for view in batch.views]
        z = self.projector(torch.cat(features)).chunk(len(features))
        return {"features": torch.stack(features, dim=1), "z": torch.stack(z, dim=1)}
