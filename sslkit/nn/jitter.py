"""Colour jitter: four operations, in an order of its own for each sample."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from sslkit.nn.color import (
    Planes,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    blend,
    grayscale,
    luma_of_planes,
    turn_hue,
)
from sslkit.nn.masked_apply import branch, select_rows

JITTER_OPS: Final = ("brightness", "contrast", "saturation", "hue")
"""The operations of colour jitter; the order of a sample is a permutation of their positions."""

_GROUPED_VALUES = 2**21
_BLOCK_VALUES = 2**18
"""In eager mode on a CPU `color_jitter` sorts so many values at a time by operation, and works on
blocks of so many, which stay in the cache with their intermediate results. Large images go one by
one."""

_ADJUST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def color_jitter(
    images: Tensor,
    apply: Tensor,  # (B,) bool
    order: Tensor,  # (B, 4) int64, a permutation of the positions in JITTER_OPS per sample
    factors: Mapping[str, Tensor],  # operation -> (B,); operations without an entry are left out
    gray: Tensor | None = None,  # (B,) bool
) -> Tensor:
    """Torchvision's `ColorJitter` with own factors and an own order for each sample; after it the
    samples of `gray` turn grey, which a compiler does in the same pass. Samples of neither mask
    keep their bits.

    images: (B, C, H, W) float in [0, 1]; saturation, hue and grey need C = 3."""
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return _jitter_by_selection(images, apply, order, factors, gray)
    chosen = apply.nonzero().squeeze(1)
    if len(chosen) and factors:
        images = _jitter_rows(images, chosen, order, factors)
    return images if gray is None else select_rows(gray, images, grayscale)


# --- The same steps for all samples ---------------------------------------------------------------

_Step = tuple[str, Tensor]
"""An operation and its factor for each sample."""

_NEUTRAL = {"brightness": 1.0, "saturation": 1.0, "hue": 0.0}
"""The factors that change nothing."""


def _jitter_by_selection(
    images: Tensor,
    apply: Tensor,
    order: Tensor,
    factors: Mapping[str, Tensor],
    gray: Tensor | None,
) -> Tensor:
    """One sequence of steps for all samples; an operation whose turn it is not has a neutral
    factor. Shapes are fixed and nothing is read back, as compilers and GPUs want it.

    Contrast alone needs the whole image, so that two passes over the pixels do: one with what comes
    before contrast in the order of a sample, one with contrast and what comes after it. Each has a
    place for hue. A single sample, compiled for a CPU, takes the branch that has just one.
    """
    slots = torch.arange(order.shape[1], device=order.device)
    turns = {name: ((order == op) * slots).sum(dim=1) for op, name in enumerate(JITTER_OPS)}

    def jittered(hue_before: bool, hue_after: bool) -> Tensor:
        return _two_passes(images, apply, turns, factors, gray, (hue_before, hue_after))

    def plain() -> Tensor:
        return images.clone() if gray is None else _select_gray(images, gray)

    if not (torch.compiler.is_compiling() and images.device.type == "cpu" and len(images) == 1):
        return jittered(True, True)
    hue_first = (turns["hue"] < turns["contrast"]).any()
    return branch(
        apply.any(),
        lambda: branch(hue_first, lambda: jittered(True, False), lambda: jittered(False, True)),
        plain,
    )


def _two_passes(
    images: Tensor,
    apply: Tensor,
    turns: Mapping[str, Tensor],  # operation -> (B,), its place in the order
    factors: Mapping[str, Tensor],
    gray: Tensor | None,
    hue: tuple[bool, bool],  # whether there is a place for hue before contrast, after it
) -> Tensor:
    early, late = (
        _sequence(
            {name: apply & side(turn, turns["contrast"]) for name, turn in turns.items()},
            turns,
            factors,
            with_hue,
        )
        for side, with_hue in zip((operator.lt, operator.gt), hue, strict=True)
    )
    contrast = factors.get("contrast", torch.ones_like(apply, dtype=torch.float32))
    masks = [apply] if gray is None else [apply, gray]
    columns = _table([*(f for _, f in early), contrast, *(f for _, f in late), *masks])
    factor, chosen = columns[len(early)], columns[len(early) + len(late) + 1].view(-1, 1, 1) > 0.0

    original = images.unbind(1)
    planes = _follow(original, early, columns)
    if "contrast" in factors:
        mean = _mean_value(planes)
        planes = [blend(plane, mean, factor) for plane in planes]
    planes = _follow(planes, late, columns[len(early) + 1 :])
    planes = [torch.where(chosen, new, old) for new, old in zip(planes, original, strict=True)]
    if gray is not None:
        value, turned = luma_of_planes(planes), columns[-1].view(-1, 1, 1) > 0.0
        planes = [torch.where(turned, value, plane) for plane in planes]
    return torch.stack(list(planes), dim=1)


def _table(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same values (B,) as columns of one float table. What is contiguous over samples misleads
    a compiler's choice of the loop to vectorise, which should be that over pixels."""
    return torch.stack([value.float() for value in values], dim=1).unbind(1)


def _sequence(
    active: Mapping[str, Tensor],  # operation -> (B,) bool
    turns: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    with_hue: bool,
) -> list[_Step]:
    """Brightness, saturation, brightness, hue, and the first three again: it contains each order of
    the three operations. Every active operation has its factor at one of its places, by its turn,
    and the neutral one elsewhere."""
    steps: list[_Step] = []

    def add(name: str, here: Tensor) -> None:
        if name in factors:
            steps.append((name, torch.where(here, factors[name], _NEUTRAL[name])))

    with_hue = with_hue and "hue" in factors
    for side in (operator.lt, operator.gt) if with_hue else (None,):
        if side is operator.gt:
            add("hue", active["hue"])
        here = {
            name: active[name] if side is None else active[name] & side(turns[name], turns["hue"])
            for name in ("brightness", "saturation")
        }
        earlier = turns["brightness"] < turns["saturation"]
        add("brightness", here["brightness"] & earlier)
        add("saturation", here["saturation"])
        add("brightness", here["brightness"] & ~earlier)
    return steps


def _follow(planes: Planes, steps: Sequence[_Step], columns: Sequence[Tensor]) -> Planes:
    for (name, _), factor in zip(steps, columns, strict=False):
        if name == "hue":
            planes = turn_hue(planes, factor)
        elif name == "brightness":
            planes = [adjust_brightness(plane, factor) for plane in planes]
        else:
            grey = luma_of_planes(planes)
            planes = [blend(plane, grey, factor) for plane in planes]
    return planes


def _mean_value(planes: Planes) -> Tensor:
    """(B, 1, 1): the mean grey value; of all channels where they are not RGB."""
    grey = len(planes) == 3
    values = luma_of_planes(planes)[:, None] if grey else torch.stack(list(planes), dim=1)
    if torch.compiler.is_compiling():
        # Compiled code adds up an image in as few sums as the CPU has lanes: of 224 px, 1e-5 of an
        # even image was lost. By rows it is 2e-7, about what eager mode loses.
        values = values.mean(dim=3, keepdim=True)
    return values.mean(dim=(1, 2, 3))[:, None, None]


def _select_gray(images: Tensor, gray: Tensor) -> Tensor:
    planes = images.unbind(1)
    value, chosen = luma_of_planes(planes), gray.view(-1, 1, 1)
    return torch.stack([torch.where(chosen, value, plane) for plane in planes], dim=1)


# --- Sample by sample, or sorted by operation -----------------------------------------------------


def _jitter_rows(
    images: Tensor, chosen: Tensor, order: Tensor, factors: Mapping[str, Tensor]
) -> Tensor:
    result = images.clone()
    if 8 * images[0].numel() > _BLOCK_VALUES:  # sorting pays only where a block holds several
        for row in chosen.tolist():
            one = slice(row, row + 1)
            for operation in order[row].tolist():
                if (name := JITTER_OPS[operation]) in factors:
                    result[one] = _ADJUST[name](result[one], factors[name][one])
        return result
    for rows in torch.split(chosen, _GROUPED_VALUES // images[0].numel()):
        chunk_factors = {name: factor[rows] for name, factor in factors.items()}
        changed = _jitter_by_grouping(images.index_select(0, rows), order[rows], chunk_factors)
        result.index_copy_(0, rows, changed)
    return result


def _jitter_by_grouping(images: Tensor, order: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """In each slot the samples are sorted by operation, and each operation runs once on its group:
    the least arithmetic, for eager mode on a CPU. Overwrites `images`."""
    rows = torch.arange(len(images))
    step = _BLOCK_VALUES // images[0].numel()
    for slot in range(order.shape[1]):
        by_operation = order[rows, slot].argsort(stable=True)
        rows, images = rows[by_operation], images.index_select(0, by_operation)
        counts = order[:, slot].bincount(minlength=len(JITTER_OPS)).tolist()
        groups = zip(
            JITTER_OPS, torch.split(images, counts), torch.split(rows, counts), strict=True
        )
        for name, group, members in groups:
            if name in factors and len(members):
                mine = factors[name].index_select(0, members)
                for block, factor in zip(
                    torch.split(group, step), torch.split(mine, step), strict=True
                ):
                    block.copy_(_ADJUST[name](block, factor))
    return images.index_select(0, rows.argsort())
