"""Work on whole batches, a few samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_BLOCK_VALUES = 2**17
"""Values of a block, 512 KiB in float32: with what is made of them on the way they stay in the
second-level cache of a core. Measured in decision 0016."""


def block_rows(values: int) -> int:
    """How many samples of so many values make a block. It depends on shapes only, so that no
    result depends on the machine."""
    return max(1, _BLOCK_VALUES // values)


def in_blocks(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Any], count: int, rows: int
) -> list[Tensor]:
    """`function(*arguments)`, computed for `rows` of the `count` samples at a time.

    Every tensor in `arguments`, which may be nested sequences and mappings, has a row for each
    sample, and so has each tensor that `function` returns. All blocks are of one size, as a
    compiled function wants them: the last one is filled up with copies of its last sample, whose
    results are dropped. Raises ValueError where there are no samples.
    """
    if count < 1:
        raise ValueError("in_blocks: there are no samples to work on")
    results: list[Tensor] = []
    for begin in range(0, count, rows):
        parts = function(*(_select(argument, begin, rows) for argument in arguments))
        if not results:
            results = [part.new_empty(count, *part.shape[1:]) for part in parts]
        for result, part in zip(results, parts, strict=True):
            result[begin : begin + rows] = part[: count - begin]
    return results


def _select(argument: Any, begin: int, rows: int) -> Any:
    if isinstance(argument, Tensor):
        part = argument[begin : begin + rows]
        missing = rows - len(part)
        return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
    if isinstance(argument, Mapping):
        return {name: _select(value, begin, rows) for name, value in argument.items()}
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return tuple(_select(value, begin, rows) for value in argument)
    return argument


_MAPPED_ROWS = 1 << 13


@torch.no_grad()
def map_rows(function: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device) -> Tensor:
    """`function(rows)`, float32, computed on `device` for some of the rows at a time; without
    gradients. rows: (N, F); the result lies where they do."""
    parts = torch.split(rows, _MAPPED_ROWS)
    return torch.cat([function(part.to(device)).float().to(rows.device) for part in parts])
