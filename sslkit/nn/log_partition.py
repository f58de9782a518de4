"""Log-partitions log sum_j exp s_ij of a similarity matrix s, in linear memory.

They are all that a contrastive loss needs of the matrix: positives are one number per row. The
matrix is worked through in tiles, and once more in the backward pass; what stays in between is one
number per row. Of a symmetric matrix, only the upper half is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once

from .numerics import without_autocast

DEFAULT_CHUNK_ELEMENTS = 2**22
"""16 MiB of float32: large enough for efficient products and few kernel launches on a GPU, small
enough for the last-level cache of a CPU."""

_LOG2_E = 1 / math.log(2)

_EXPONENT_SHARE = 0.72
"""Part of the range of exponents that similarities may span before they are worked on as logits:
in float32, exp(64). The rest is room for gradients under a scaled loss."""


def self_log_partition(
    rows: Tensor,
    temperature: float,
    masked: tuple[int, ...] = (0,),
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
) -> Tensor:
    """(R,): log sum_j exp(rows_i . rows_j / temperature), for every row i.

    rows: (R, D), no row longer than 1. masked: diagonals j - i that do not count; with k also -k.
    chunk_elements: similarities held at a time; all of them, where R^2 is not more.
    """
    if set(masked) != {-diagonal for diagonal in masked}:
        raise ValueError(f"the diagonals of a symmetric matrix come in pairs, not as {masked}")
    return _log_partitions(rows, None, temperature, masked, chunk_elements, False)[0]


def cross_log_partitions(
    rows: Tensor,
    columns: Tensor,
    temperature: float,
    masked: tuple[int, ...] = (),
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
    *,
    both: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log sum_j exp(rows_i . columns_j / temperature) for every row (R,), and with `both` the sum
    over i for every column (C,), else None.

    rows: (R, D), columns: (C, D), none longer than 1. The other arguments are those of
    `self_log_partition`.
    """
    return _log_partitions(rows, columns, temperature, masked, chunk_elements, both)


def _log_partitions(*arguments: Any) -> tuple[Tensor, Tensor | None]:
    by_side: tuple[Tensor, Tensor | None] = _untraced(*arguments)
    return by_side


@_disable_dynamo
def _untraced(*arguments: Any) -> Any:
    # A compiler would unroll the loop over the tiles.
    return _LogPartitions.apply(*arguments)


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    mirror: int
    """First column of the tile that stands for its mirror image as well (symmetric matrices)."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def within(self, workspace: Tensor) -> Tensor:
        """The start of a flat workspace in the shape of this tile."""
        return workspace[: math.prod(self.shape)].view(self.shape)


def _tiles(num_rows: int, num_columns: int, chunk_elements: int, *, symmetric: bool) -> list[_Tile]:
    """Strips of whole rows; where they would be flat, tiles that are 16 times as wide as high. Of
    a symmetric matrix: the tiles from the diagonal on to the right."""
    if num_rows * num_columns <= chunk_elements:
        whole = slice(0, num_rows), slice(0, num_columns)
        return [_Tile(*whole, num_columns if symmetric else 0)]
    height = max(1, chunk_elements // num_columns, math.isqrt(chunk_elements) // 4)
    width = max(1, chunk_elements // height)
    if symmetric:  # the halves of diagonal blocks that are computed for nothing: at most an eighth
        height = min(height, -(-num_rows // 8))
    tiles = []
    for top in range(0, num_rows, height):
        bottom = min(top + height, num_rows)
        first = top if symmetric else 0
        for left in range(first, num_columns, width):
            mirror = bottom - top if symmetric and left == first else 0
            right = min(left + width, num_columns)
            tiles.append(_Tile(slice(top, bottom), slice(left, right), mirror))
    return tiles


@dataclass(frozen=True, eq=False)
class _Similarities:
    """rows @ columns.T / temperature without the masked diagonals, tile by tile."""

    rows: Tensor
    columns: Tensor
    temperature: float
    masked: tuple[int, ...]
    chunk_elements: int
    symmetric: bool

    @cached_property
    def tiles(self) -> list[_Tile]:
        return _tiles(
            len(self.rows), len(self.columns), self.chunk_elements, symmetric=self.symmetric
        )

    @cached_property
    def direct(self) -> bool:
        """Whether sums of exp(s) fit the dtype, so that no maximum has to be subtracted: known
        from the temperature, because the rows are unit vectors."""
        largest = 1 / self.temperature + math.log(len(self.columns))
        return largest <= _EXPONENT_SHARE * math.log(torch.finfo(self.rows.dtype).max)

    def workspace(self) -> Tensor:
        return self.rows.new_empty(max(math.prod(tile.shape) for tile in self.tiles))

    def values(self, tile: _Tile, workspace: Tensor) -> Tensor:
        """exp(s) where it is `direct`, else s; in the workspace."""
        values = tile.within(workspace)
        # exp2 of s log2(e) takes a third of the time of exp(s) on a CPU.
        scale = (_LOG2_E if self.direct else 1.0) / self.temperature
        torch.mm(self.rows[tile.rows] * scale, self.columns[tile.columns].T, out=values)
        for diagonal in self.masked:
            entries = values.diagonal(diagonal + tile.rows.start - tile.columns.start)
            if entries.numel():
                entries.fill_(-math.inf)
        return values.exp2_() if self.direct else values

    def empty_sums(self, count: int) -> Tensor:
        return self.rows.new_full((count,), 0.0 if self.direct else -math.inf)

    def add(self, sums: Tensor, values: Tensor, dim: int) -> None:
        """Adds up the exponentials of a tile along `dim`."""
        if self.direct:
            sums.add_(values.sum(dim=dim))
        else:
            sums.copy_(torch.logaddexp(sums, values.logsumexp(dim=dim)))

    def log(self, sums: Tensor) -> Tensor:
        return sums.log_() if self.direct else sums

    def weighted(
        self, values: Tensor, by_row: _Side, by_column: _Side | None, workspace: Tensor
    ) -> Tensor:
        """The gradient with respect to s: each exponential over its row's partition, times the
        row's upstream gradient, plus the same for its column. `values` stays as it is."""
        if self.direct:
            weights = by_row.weights[:, None]
            if by_column is None:
                return torch.mul(values, weights, out=workspace)
            return torch.add(weights, by_column.weights, out=workspace).mul_(values)
        torch.sub(values, by_row.log_partition[:, None], out=workspace)
        gradient = workspace.exp_().mul_(by_row.upstream[:, None])
        if by_column is not None:
            gradient += (values - by_column.log_partition).exp_().mul_(by_column.upstream)
        return gradient


class _Side(NamedTuple):
    """The log-partitions of the rows or of the columns, and their upstream gradient."""

    log_partition: Tensor
    upstream: Tensor

    @property
    def weights(self) -> Tensor:
        """upstream / partition"""
        return self.log_partition.neg().exp_().mul_(self.upstream)

    def part(self, part: slice) -> _Side:
        return _Side(self.log_partition[part], self.upstream[part])


class _LogPartitions(torch.autograd.Function):
    """rows (R, D), columns (C, D) or None for the rows themselves -> by row (R,), by column (C,)
    or None. The values of a single tile are kept for the backward pass; of several, none."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor | None,
        temperature: float,
        masked: tuple[int, ...],
        chunk_elements: int,
        both: bool,
    ) -> tuple[Tensor, Tensor | None]:
        symmetric = columns is None
        settings = (temperature, masked, chunk_elements, symmetric)
        similarities = _Similarities(rows, rows if columns is None else columns, *settings)
        by_row = similarities.empty_sums(len(rows))
        by_column = None
        if symmetric or both:
            by_column = by_row if columns is None else similarities.empty_sums(len(columns))
        workspace = similarities.workspace()
        for tile in similarities.tiles:
            values = similarities.values(tile, workspace)
            similarities.add(by_row[tile.rows], values, 1)
            if by_column is not None and tile.mirror < values.shape[1]:
                sums = by_column[tile.columns][tile.mirror :]
                similarities.add(sums, values[:, tile.mirror :], 0)
        similarities.log(by_row)
        if by_column is not None and not symmetric:
            similarities.log(by_column)
        single = len(similarities.tiles) == 1
        kept = workspace if single and any(ctx.needs_input_grad[:2]) else None
        ctx.settings = settings
        ctx.save_for_backward(rows, columns, by_row, None if symmetric else by_column, kept)
        return by_row, None if symmetric else by_column

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, column_upstream: Any) -> tuple[Any, ...]:
        rows, columns, by_row, by_column, kept = ctx.saved_tensors
        similarities = _Similarities(rows, rows if columns is None else columns, *ctx.settings)
        row_side = _Side(by_row, upstream)
        column_side = row_side if columns is None else None
        if by_column is not None:
            column_side = _Side(by_column, column_upstream)
        with without_autocast(rows):
            to_rows, to_columns = _gradients(
                similarities, row_side, column_side, kept, ctx.needs_input_grad
            )
        return to_rows, None if columns is None else to_columns, None, None, None, None


def _gradients(
    similarities: _Similarities,
    row_side: _Side,
    column_side: _Side | None,
    kept: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Similarity (i, j) is a product of row i and column j, so it sends a gradient to both."""
    rows, columns = similarities.rows, similarities.columns
    to_rows = torch.zeros_like(rows) if needed[0] else None
    to_columns = torch.zeros_like(columns) if needed[1] else None
    if similarities.symmetric:
        to_columns = to_rows
    first, second = kept, similarities.workspace()
    if first is None:
        first = torch.empty_like(second)
    for tile in similarities.tiles:
        values = tile.within(first) if kept is not None else similarities.values(tile, first)
        by_column = None if column_side is None else column_side.part(tile.columns)
        by_row = row_side.part(tile.rows)
        gradient = similarities.weighted(values, by_row, by_column, tile.within(second))
        if to_rows is not None:
            to_rows[tile.rows].addmm_(gradient, columns[tile.columns])
        if to_columns is not None and tile.mirror < gradient.shape[1]:
            mirrored = gradient[:, tile.mirror :]
            to_columns[tile.columns][tile.mirror :].addmm_(mirrored.T, rows[tile.rows])
    for total in (to_rows, None if similarities.symmetric else to_columns):
        if total is not None:
            total.div_(similarities.temperature)
    return to_rows, to_columns
