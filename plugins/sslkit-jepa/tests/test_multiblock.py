"""Which patches are shown and asked for, against a slow reading of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from sslkit_jepa.multiblock import MultiBlock

from sslkit.randomness import SampleRandom

IMAGES = 400


def blocks(rows: int = 14, columns: int = 14, **fields: object) -> MultiBlock:
    given = {
        "targets": 4,
        "target_scale": (0.15, 0.2),
        "target_aspect": (0.75, 1.5),
        "context_scale": (0.85, 1.0),
        "least_context": 10,
        "most_context": rows * columns,
    }
    return MultiBlock((rows, columns), **{**given, **fields})  # type: ignore[arg-type]


def random(epoch: int = 0) -> SampleRandom:
    return SampleRandom(3, "method", epoch, torch.arange(IMAGES))


def cells(numbers: list[int], columns: int) -> set[tuple[int, int]]:
    return {(number // columns, number % columns) for number in numbers}


def is_rectangle(found: set[tuple[int, int]]) -> tuple[int, int] | None:
    """Its sides, or None where it is none."""
    rows, columns = ({cell[axis] for cell in found} for axis in (0, 1))
    filled = {(row, column) for row in rows for column in columns}
    straight = all(max(side) - min(side) == len(side) - 1 for side in (rows, columns))
    return (len(rows), len(columns)) if filled == found and straight else None


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (8, 8), (8, 12)])
def test_targets_are_blocks_of_the_papers_sizes(rows: int, columns: int) -> None:
    drawn = blocks(rows, columns)
    regions = drawn.draw(random())
    sizes = set()
    for image in range(IMAGES):
        length = int(regions.target_lengths[image])
        sides = {
            is_rectangle(cells(block[:length].tolist(), columns))
            for block in regions.targets[image]
        }
        assert len(sides) == 1, "the blocks of an image have one size"
        (found,) = sides
        assert found is not None
        sizes.add(found)
    low, high = (int(rows * columns * scale) for scale in (0.15, 0.2))
    possible = {
        (
            min(round(math.sqrt(area * aspect)), rows - 1),
            min(round(math.sqrt(area / aspect)), columns - 1),
        )
        for area in range(low, high + 1)
        for aspect in (0.75 + 0.75 * step / 500 for step in range(501))
    }
    assert sizes <= possible
    assert drawn.longest_target == max(height * width for height, width in possible)
    assert regions.targets.shape[2] == drawn.longest_target


@pytest.mark.parametrize("size", [8, 14])
def test_context_and_targets_never_overlap_where_enough_is_left(size: int) -> None:
    regions = blocks(size, size, least_context=2).draw(random())
    for image in range(IMAGES):
        shown = set(regions.context[image, : regions.context_lengths[image]].tolist())
        asked = {
            number
            for block in regions.targets[image]
            for number in block[: regions.target_lengths[image]].tolist()
        }
        assert shown
        assert not shown & asked
        block = cells(sorted(shown | asked), size)
        assert len(block) >= math.floor(0.8 * (size - 1) ** 2)


def test_the_context_is_the_whole_block_without_the_targets() -> None:
    """Nothing more is taken out: what lies between the outermost rows and columns that are shown
    and is not shown belongs to a target."""
    regions = blocks().draw(random())
    for image in range(IMAGES):
        shown = cells(regions.context[image, : regions.context_lengths[image]].tolist(), 14)
        asked = {
            cell
            for block in regions.targets[image]
            for cell in cells(block[: regions.target_lengths[image]].tolist(), 14)
        }
        rows, columns = ([cell[axis] for cell in shown] for axis in (0, 1))
        inside = {
            (row, column)
            for row in range(min(rows), max(rows) + 1)
            for column in range(min(columns), max(columns) + 1)
        }
        assert inside - shown <= asked


def test_the_last_targets_overlap_where_too_little_is_left() -> None:
    strict, kept = blocks(least_context=2).draw(random()), blocks(least_context=90).draw(random())
    few = strict.context_lengths < 90
    assert few.any()
    assert not few.all()
    assert torch.equal(kept.context_lengths[~few], strict.context_lengths[~few])
    assert (kept.context_lengths >= 90).all()
    for image in few.nonzero().flatten().tolist():
        shown = set(kept.context[image, : kept.context_lengths[image]].tolist())
        first = set(kept.targets[image, 0, : kept.target_lengths[image]].tolist())
        last = set(kept.targets[image, 3, : kept.target_lengths[image]].tolist())
        assert shown & last or not shown & first
    assert torch.equal(kept.targets, strict.targets)


def test_of_a_large_context_a_part_is_chosen_at_random() -> None:
    whole, part = blocks().draw(random()), blocks(most_context=60).draw(random())
    assert part.context.shape[1] == 60
    assert torch.equal(part.context_lengths, whole.context_lengths.clamp(max=60))
    left = []
    for image in range(IMAGES):
        shown = set(part.context[image, : part.context_lengths[image]].tolist())
        everything = whole.context[image, : whole.context_lengths[image]].tolist()
        assert shown <= set(everything)
        left += [number // 14 for number in everything if number not in shown]
    assert abs(sum(left) / len(left) - 6.5) < 0.5  # from all rows alike, not from the last


def test_areas_and_aspects_are_uniform_and_drawn_apart() -> None:
    """The aspect itself and not its logarithm, whose mean would be 1.08; in the code of the authors
    one number gives both."""
    side, count = 40, 1500
    drawn = blocks(side, side, targets=1).draw(SampleRandom(0, "method", 0, torch.arange(count)))
    counts = torch.arange(drawn.targets.shape[2]) < drawn.target_lengths[:, None]
    rows = drawn.targets[:, 0] // side
    heights = rows.where(counts, rows[:, :1]).amax(1) - rows[:, 0] + 1
    widths = drawn.target_lengths // heights
    area, aspect = drawn.target_lengths / side**2, heights / widths
    assert area.mean() == pytest.approx(0.175, abs=0.002)
    assert area.std() == pytest.approx(0.05 / math.sqrt(12), rel=0.15)  # whole patches widen it
    assert aspect.mean() == pytest.approx(1.125, abs=0.015)
    assert aspect.std() == pytest.approx(0.75 / math.sqrt(12), rel=0.05)
    assert torch.corrcoef(torch.stack([area, aspect]))[0, 1].abs() < 0.1


def test_places_are_uniform() -> None:
    regions = blocks(targets=1, target_scale=(0.15, 0.15), target_aspect=(1.0, 1.0)).draw(
        SampleRandom(0, "method", 0, torch.arange(20_000))
    )
    corner = regions.targets[:, 0, 0]
    for places in (corner // 14, corner % 14):
        counts = torch.bincount(places, minlength=10)
        assert len(counts) == 10  # sides of 5: 0 to 9, the last row included
        assert (counts.float() / 2_000 - 1).abs().max() < 0.1


def test_regions_follow_from_the_image_and_the_epoch_alone() -> None:
    drawn = blocks()
    whole, later = drawn.draw(random()), drawn.draw(random(1))
    rows = torch.tensor([7, 3, 250])
    for mine, expected, other in zip(drawn.draw(random().select(rows)), whole, later, strict=True):
        assert torch.equal(mine, expected[rows])
        assert not torch.equal(expected, other)


@pytest.mark.parametrize(
    ("scale", "aspect"),
    [
        ((0.001, 0.2), (0.75, 1.5)),  # down to areas of no patch, of which one is asked for
        ((0.57, 0.57), (1.0, 1.0)),  # 57 patches in float32, and 56 in float64
        ((0.1, 0.2), (100.0, 100.0)),  # longer than the grid
        ((0.1, 0.2), (0.01, 50.0)),
    ],
)
def test_rows_of_targets_are_as_long_as_the_largest_block(
    scale: tuple[float, float], aspect: tuple[float, float]
) -> None:
    drawn = blocks(10, 10, target_scale=scale, target_aspect=aspect)
    regions = drawn.draw(random())
    assert regions.targets.shape[-1] == drawn.longest_target
    assert int(regions.target_lengths.min()) >= 1
    assert int(regions.target_lengths.max()) <= drawn.longest_target
    sizes = {(0.57, 0.57): 64, (0.1, 0.2): 9}
    if aspect[0] == aspect[1]:
        assert drawn.longest_target == sizes[scale]
