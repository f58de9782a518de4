"""How good a representation looks without labels, and whether it has collapsed.

All functions take features (N, D), compute in float64 without gradient, and return a float64
scalar tensor; it is NaN where the features are not finite. Shapes: N samples, D feature width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numerics import normalize

_ROWS = 4096
"""Rows of a block: bounds the memory of float64 copies and of pairwise distances."""


@torch.no_grad()
def rankme(features: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe: exp(-sum p ln p) with p = sigma / sum(sigma) + eps, between 0 and min(N, D).

    sigma are the singular values of the features as they are (not centred), taken as roots of the
    eigenvalues of the smaller Gram matrix. All-zero features give 0. The paper uses 25,600
    samples; values compare between runs of one architecture and width only. Raises ValueError
    unless features are (N, D) with N >= 1. Source: Garrido et al. 2023, arXiv 2210.02885, eq. 1.
    """
    _check(features, minimum=1)
    gram = _smaller_gram(features)
    if not gram.isfinite().all():
        return gram.new_tensor(math.nan)
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    total: Tensor = sigma.sum()
    if total == 0.0:
        return total
    p = sigma / total + eps
    entropy: Tensor = -(p * p.log()).sum()
    return entropy.exp()


@torch.no_grad()
def alignment(a: Tensor, b: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean of |a - b|^alpha over positive pairs of normalised features: 0 where views agree.

    a, b: (N, D), row i of each from the same image. Raises ValueError for other shapes.
    Source: Wang & Isola 2020, arXiv 2005.10242.
    """
    _check(a, minimum=1)
    if a.shape != b.shape:
        raise ValueError(f"positive pairs must match, not {tuple(a.shape)} and {tuple(b.shape)}")
    distances: Tensor = torch.linalg.vector_norm(_unit(a) - _unit(b), dim=1)
    return distances.pow(alpha).mean()


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """ln of the mean of exp(-t |x - y|^2) over distinct pairs of normalised features.

    0: all equal; about -4 (t = 2): uniform on the sphere in many dimensions. Time grows with N^2,
    memory with N. Raises ValueError unless features are (N, D) with N >= 2.
    Source: Wang & Isola 2020, arXiv 2005.10242.
    """
    _check(features, minimum=2)
    x = _unit(features)
    squares = x.square().sum(dim=1)  # 1, or 0 for a zero row
    total = x.new_zeros(())
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = (squares[rows, None] + squares - 2.0 * x[rows] @ x.T).clamp_min_(0.0)
        kernel = distances.mul_(-t).exp_()
        kernel.diagonal(start).zero_()
        total += kernel.sum()
    return (total / (len(x) * (len(x) - 1))).log()


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of normalised features.

    About 1 / sqrt(D) for features spread over the sphere, 0 after collapse. Raises ValueError
    unless features are (N, D) with N >= 2. Source: Chen & He 2021, arXiv 2011.10566, section 4.1.
    """
    _check(features, minimum=2)
    return _unit(features).std(dim=0).mean()


@torch.no_grad()
def prototypes_in_use(assignments: Tensor) -> Tensor:
    """How many of the prototypes that could be in use are: (n - 1) / (min(N, K) - 1), where n is
    the exponential of the entropy of the mean assignment, its effective number of prototypes. 0:
    all samples share one; 1: all prototypes are used alike, or every sample has its own.

    assignments: (N, K) probabilities, rows that sum to 1. Raises ValueError unless N, K >= 2."""
    _check(assignments, minimum=2)
    if assignments.shape[1] < 2:
        raise ValueError("assignments need at least 2 prototypes")
    mean = _double(assignments).mean(dim=0)
    effective = (-torch.xlogy(mean, mean).sum()).exp()
    most = min(assignments.shape)
    return ((effective - 1.0) / (most - 1.0)).clamp(0.0, 1.0)


def _smaller_gram(features: Tensor) -> Tensor:
    """Z^T Z or Z Z^T, whichever is smaller, in float64."""
    if len(features) < features.shape[1]:
        z = _double(features)
        return z @ z.T
    blocks = (_double(block) for block in torch.split(features, _ROWS))
    return sum((block.T @ block for block in blocks), start=_double(features.new_zeros(())))


def _unit(features: Tensor) -> Tensor:
    return normalize(_double(features))


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # MPS has no float64


def _check(features: Tensor, minimum: int) -> None:
    if features.ndim != 2 or len(features) < minimum:
        raise ValueError(
            f"features must be (N, D) with N >= {minimum}, not {tuple(features.shape)}"
        )
