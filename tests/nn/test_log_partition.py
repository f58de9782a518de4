"""Log-partitions in tiles against the whole matrix: values, gradients, ranges, autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.nn.log_partition import _tiles, cross_log_partitions, self_log_partition
from sslkit.nn.numerics import normalize

CHUNKS = [1, 7, 40, 150, 10**6]


def unit(count: int, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64)).to(dtype)


def dense(rows: Tensor, columns: Tensor, temperature: float, masked: tuple[int, ...]) -> Tensor:
    """(R, C) similarities with -inf on the masked diagonals."""
    i, j = torch.arange(len(rows))[:, None], torch.arange(len(columns))
    hidden = torch.stack([j - i == d for d in masked]).any(0) if masked else j < 0
    return (rows @ columns.T / temperature).masked_fill(hidden, -math.inf)


@pytest.mark.parametrize("chunk", [1, 3, 16, 100, 1000, 5000])
@pytest.mark.parametrize(
    ("shape", "symmetric"),
    [((1, 1), True), ((13, 13), True), ((40, 40), True), ((40, 40), False), ((13, 40), False),
     ((40, 13), False)],
)  # fmt: skip
def test_tiles_cover_every_pair_once(shape: tuple[int, int], symmetric: bool, chunk: int) -> None:
    seen = torch.zeros(shape, dtype=torch.int64)
    for tile in _tiles(*shape, chunk, symmetric=symmetric):
        height = tile.rows.stop - tile.rows.start
        assert height * (tile.columns.stop - tile.columns.start) <= chunk
        seen[tile.rows, tile.columns] += 1
        if symmetric:
            mirrored = slice(tile.columns.start + tile.mirror, tile.columns.stop)
            seen[mirrored, tile.rows] += 1
    assert (seen == 1).all()


def test_large_matrices_are_cut_into_tiles_that_products_like() -> None:
    """Strips of 32 x 131,072 would read all embeddings for little work."""
    tiles = _tiles(131_072, 131_072, 2**22, symmetric=True)
    assert {tile.rows.stop - tile.rows.start for tile in tiles} == {512}
    assert max(tile.columns.stop - tile.columns.start for tile in tiles) == 8192


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("temperature", [0.5, 0.001])  # exponentials; logits
@pytest.mark.parametrize("masked", [(0,), (-4, 0, 4), (-8, -4, 0, 4, 8)])
def test_symmetric(masked: tuple[int, ...], temperature: float, chunk: int) -> None:
    rows, upstream = unit(12).requires_grad_(), torch.rand(12, dtype=torch.float64)
    ours = self_log_partition(rows, temperature, masked, chunk)
    expected = dense(rows, rows, temperature, masked).logsumexp(dim=1)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, rows, upstream) for value in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("temperature", [0.5, 0.001])
@pytest.mark.parametrize("masked", [(), (2,), (-3, 4)])
def test_rectangular(masked: tuple[int, ...], temperature: float, chunk: int, both: bool) -> None:
    rows, columns = unit(9).requires_grad_(), unit(14, seed=1).requires_grad_()
    by_row, by_column = cross_log_partitions(rows, columns, temperature, masked, chunk, both=both)
    matrix = dense(rows, columns, temperature, masked)
    expected = [matrix.logsumexp(dim=1), matrix.logsumexp(dim=0)][: 1 + both]
    assert (by_column is not None) == both
    ours = [by_row] if by_column is None else [by_row, by_column]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    upstream = [torch.rand(len(value), dtype=torch.float64) for value in ours]
    gradients = [
        torch.autograd.grad(values, [rows, columns], upstream) for values in (ours, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_only_one_side_of_a_pair_is_used() -> None:
    rows, columns = unit(6).requires_grad_(), unit(8, seed=1)
    by_row, by_column = cross_log_partitions(rows, columns, 0.2, (), 10, both=True)
    assert by_column is not None
    expected = dense(rows, columns, 0.2, ()).logsumexp(dim=0).sum()
    (ours,) = torch.autograd.grad(by_column.sum(), rows)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, rows)[0])
    assert by_row.requires_grad


@pytest.mark.parametrize("chunk", [6, 1000])
def test_gradcheck(chunk: int) -> None:
    rows, columns = unit(6, 3).requires_grad_(), unit(7, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: self_log_partition(0.9 * x, 0.3, (-3, 0, 3), chunk), (rows,)
    )

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        by_side = cross_log_partitions(0.9 * x, 0.9 * y, 0.3, (1,), chunk, both=True)
        return tuple(side for side in by_side if side is not None)

    assert torch.autograd.gradcheck(both, (rows, columns))


def test_the_range_of_exponents_decides_nothing_but_rounding() -> None:
    """Just above and just below the temperature where logits take the place of exponentials."""
    rows = unit(50, 16, dtype=torch.float32)
    limit = 1 / (0.72 * math.log(torch.finfo(torch.float32).max) - math.log(50))
    for temperature in (0.999 * limit, 1.001 * limit):
        exact = dense(rows.double(), rows.double(), temperature, (0,)).logsumexp(dim=1)
        ours = self_log_partition(rows, temperature, (0,), 300)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.02, 0.01, 1e-3])
def test_opposite_and_equal_rows_at_cold_temperatures(temperature: float) -> None:
    """Similarities of -1 / temperature alone in a row, beside rows with 1 / temperature."""
    rows = torch.tensor([[1.0, 0], [1, 0], [-1, 0]], requires_grad=True)
    ours = self_log_partition(rows, temperature, (0,), 2)
    exact = dense(rows.double(), rows.double(), temperature, (0,)).logsumexp(dim=1)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-5)
    # As large as float32 losses are scaled for half-precision networks.
    (gradient,) = torch.autograd.grad(65_536 * ours.sum(), rows)
    (expected,) = torch.autograd.grad(65_536 * exact.sum(), rows)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-2)


def test_float32_stays_close_over_many_tiles() -> None:
    rows = unit(1500, 32, dtype=torch.float32)
    exact = self_log_partition(rows.double(), 0.1)
    ours = self_log_partition(rows, 0.1, (0,), 2000)  # some 1,000 tiles
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6)


def test_the_backward_pass_may_run_twice_and_under_autocast() -> None:
    for chunk in (100, 10**6):
        rows = unit(40, 16, dtype=torch.float32).requires_grad_()
        total = self_log_partition(rows, 0.1, (0,), chunk).square().sum()
        (first,) = torch.autograd.grad(total, rows, retain_graph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (second,) = torch.autograd.grad(total, rows)
        assert torch.equal(first, second)


def test_unpaired_diagonals_of_a_symmetric_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in pairs, not as \(0, 2\)"):
        self_log_partition(unit(4), 0.5, (0, 2))
