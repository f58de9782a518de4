"""Features in two dimensions, for maps: PCA, t-SNE and UMAP, each a function of the features and
the seed alone.

Shapes: N images, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.errors import RecipeError
from sslkit.randomness import stream_key

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
"""How features can be projected -> what it is called."""
LEAST_IMAGES = 8
"""Fewer have no neighbourhoods to show."""
_KEPT_DIMENSIONS = 50
"""Wider features are reduced by PCA before t-SNE (van der Maaten and Hinton 2008, 4.2)."""
_PERPLEXITY = 30.0
_UMAP_NEIGHBOURS = 15
_START = 1e-4
"""Standard deviation of the first coordinate from which t-SNE starts."""


@dataclass(frozen=True)
class Projection:
    """Coordinates of images on a map."""

    points: Tensor  # (N, 2) float64
    explained: tuple[float, float] | None = None
    """PCA: parts of the variance that the two axes hold."""


def parse_methods(text: str, option: str = "--map") -> tuple[str, ...]:
    """`pca,tsne` -> the names; `none` -> nothing. Raises RecipeError for others, and where `umap`
    is not installed."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("none",):
        return ()
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise RecipeError(
            f"{option} {text}: {unknown[0]!r} is no map; valid are {', '.join(METHODS)}, and none"
        )
    require(names, option)
    return names


def require(methods: Sequence[str], option: str = "--map") -> None:
    """Raises RecipeError where a package is missing that one of them needs."""
    if "umap" in methods and find_spec("umap") is None:
        raise RecipeError(
            f"{option} umap: umap-learn is not installed; install it with: pip install sslkit[viz]"
        )


def project(features: Tensor, method: str, seed: int) -> Projection:
    """Finite features (N, F) on a map, by `pca`, `tsne` or `umap`.

    Features are L2-normalised first: neighbours on the map are then those that kNN and retrieval
    see. Everything runs on one CPU thread, because sums over several give other last bits, from
    which t-SNE makes another picture. Raises ValueError for fewer than `LEAST_IMAGES`."""
    if len(features) < LEAST_IMAGES:
        raise ValueError(f"{len(features)} images are too few for a map; it takes {LEAST_IMAGES}")
    from threadpoolctl import threadpool_limits

    low, _ = stream_key(seed, "map", method)
    rows = F.normalize(features.detach().cpu().double(), dim=1)
    with threadpool_limits(limits=1):
        if method == "umap":
            return Projection(_umap(rows, low))
        scores, variances = _principal(rows, _KEPT_DIMENSIONS)
        if method == "tsne":
            return Projection(_tsne(scores, low))
    total = max(float((rows - rows.mean(dim=0)).square().sum()), 1e-300)
    return Projection(scores[:, :2], (float(variances[0]) / total, float(variances[1]) / total))


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores (N, k) on the first principal axes, at most `count` and at least 2, and the sums of
    their squares (k,). The sign of an axis is that of its largest entry."""
    import numpy as np

    centred = (rows - rows.mean(dim=0)).numpy()
    left, values, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(axes).argmax(axis=1)
    signs = np.where(axes[np.arange(len(axes)), largest] < 0, -1.0, 1.0)
    scores = torch.from_numpy((left * (values * signs))[:, :count].copy())
    squares = torch.from_numpy(values[:count] ** 2)
    if scores.shape[1] == 1:  # features of width 1
        scores, squares = F.pad(scores, (0, 1)), F.pad(squares, (0, 1))
    return scores, squares


def _tsne(scores: Tensor, seed: int) -> Tensor:
    from sklearn.manifold import TSNE

    start = scores[:, :2]
    spread = float(start[:, 0].std())
    if spread > 0:
        start = start * (_START / spread)
    else:  # all features are equal: there is nothing to start from
        generator = torch.Generator().manual_seed(seed)
        start = _START * torch.randn(start.shape, generator=generator, dtype=start.dtype)
    fit = TSNE(
        perplexity=min(_PERPLEXITY, (len(scores) - 1) / 3),
        init=start.numpy(),
        learning_rate="auto",
        random_state=seed,
        n_jobs=1,
    )
    return torch.from_numpy(fit.fit_transform(scores.numpy())).double()


def _umap(rows: Tensor, seed: int) -> Tensor:
    from umap import UMAP

    neighbours = min(_UMAP_NEIGHBOURS, len(rows) - 1)
    fit = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return torch.from_numpy(fit.fit_transform(rows.numpy())).double()
