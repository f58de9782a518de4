"""Normalisation at the edges of precision."""

from __future__ import annotations

import pytest
import torch

from sslkit.nn.numerics import full_precision, normalize


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_rows_in_full_precision(dtype: torch.dtype) -> None:
    rows = (torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * 1000).to(dtype)
    unit = normalize(rows)
    assert unit.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(6, dtype=unit.dtype))


def test_tiny_and_zero_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [3e-13, 0.0], [3e-10, 4e-10]], requires_grad=True)
    unit = normalize(rows)
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.0, 0], [0, 0], [0.6, 0.8]]))
    unit.sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad[:2], torch.zeros(2, 2))


def test_gradcheck() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, (rows,))


def test_full_precision_keeps_float64() -> None:
    assert full_precision(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
