"""How many codes of a codebook are in use."""

from __future__ import annotations

import torch
from torch import Tensor


def code_shares(codes: Tensor, count: int) -> Tensor:
    """(B, N) int64 -> (B, count) float32: the part of an image's codes that each code is."""
    ones = torch.ones(codes.shape, device=codes.device)
    shares = torch.zeros(len(codes), count, device=codes.device)
    return shares.scatter_add(1, codes, ones) / codes.shape[1]


def perplexity(shares: Tensor) -> Tensor:
    """Scalar: the exponential of the entropy of the mean of shares (B, K), as it were the number of
    codes in use: 1 to K."""
    mean = shares.double().mean(0) if shares.device.type != "mps" else shares.mean(0)
    entropy: Tensor = torch.special.entr(mean).sum()
    return entropy.exp()
