"""Views of series against closed forms and torch, and their randomness."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sslkit_series.crop_and_noise import crop_resample, keyed_normal
from sslkit_series.series_views import SeriesViews
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import RunFacts, SampleSpec
from sslkit.randomness import SampleRandom

LENGTH = 40
STILL = {"crop_scale": (1.0, 1.0), "amplitude": (1.0, 1.0), "offset": 0.0, "jitter": 0.0}
"""Nothing happens."""


def augmentation(**fields: Any) -> SeriesViews:
    return SeriesViews(SeriesViews.Config(**{"length": LENGTH, **fields}))


def keys(indices: Tensor, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, "views", epoch, indices)


def made(views: SeriesViews, series: Tensor, indices: Tensor, epoch: int = 0) -> list[Tensor]:
    sizes = torch.full((len(series), 1), series.shape[-1])
    drawn = views.draw(keys(indices, epoch), sizes)
    return [views.make(view, series, params) for view, params in enumerate(drawn)]


def some(count: int = 64, channels: int = 2, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, length, generator=generator)


# --- Crop and resampling -------------------------------------------------------------------------


@pytest.mark.parametrize("length", [7, 24, 40, 57])
def test_resampling_is_that_of_torch(length: int) -> None:
    """Each part as an image of one row, antialiased where it shrinks."""
    series = some(50, 3).double()
    start = torch.arange(50) % 20
    width = 1 + torch.arange(50) * 7 % (LENGTH - 20)
    width[:5] = LENGTH - start[:5]
    flip = torch.arange(50) % 3 == 0
    found = crop_resample(series, start, width, flip, length)
    for row in range(50):
        part = series[row, :, start[row] : start[row] + width[row]]
        expected = F.interpolate(
            part[None, :, None], size=(1, length), mode="bilinear", antialias=True
        )[0, :, 0]
        expected = expected.flip(-1) if flip[row] else expected
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_the_whole_at_its_own_length_is_the_series_itself() -> None:
    series = some()
    (view, other) = made(augmentation(**STILL), series, torch.arange(64))
    assert torch.equal(view, series)
    assert torch.equal(other, series)
    (reversed_view,) = made(augmentation(**STILL, flip=1.0, num_views=1), series, torch.arange(64))
    assert torch.equal(reversed_view, series.flip(-1))


def test_a_straight_line_stays_straight() -> None:
    """Of x = t, a part of `width` values from `start` on has a slope of width / length, where it is
    not shrunk."""
    line = torch.arange(80.0).expand(64, 1, 80)
    views = augmentation(**{**STILL, "crop_scale": (0.2, 0.5)}, num_views=1)
    (params,) = views.draw(keys(torch.arange(64)), torch.full((64, 1), 80))
    view = views.make(0, line, params)[:, 0]
    width, start = params["width"].float(), params["start"].float()
    scale = (width / LENGTH)[:, None]
    expected = start[:, None] + (torch.arange(LENGTH) + 0.5) * scale - 0.5
    inner = slice(4, -4)  # at its ends a part has no neighbours to average with
    torch.testing.assert_close(view[:, inner], expected[:, inner], rtol=1e-5, atol=1e-4)


def test_parts_lie_inside_and_reach_both_ends() -> None:
    views = augmentation(**{**STILL, "crop_scale": (0.25, 0.75)}, num_views=1)
    (params,) = views.draw(keys(torch.arange(4000)), torch.full((4000, 1), 100))
    start, width = params["start"], params["width"]
    assert (width.min(), width.max()) == (25, 75)
    assert start.min() == 0
    assert (start + width).max() == 100
    fits = 100 - width + 1  # places of the start: all alike
    assert (start / fits).mean() == pytest.approx(0.5, abs=0.02)


# --- Amplitude, offset, jitter -------------------------------------------------------------------


def test_amplitude_and_offset_are_those_drawn() -> None:
    views = augmentation(**{**STILL, "amplitude": (0.5, 2.0), "offset": 0.7}, num_views=1)
    series, indices = some(2000), torch.arange(2000)
    (params,) = views.draw(keys(indices), torch.full((2000, 1), LENGTH))
    factor, offset = params["amplitude"][:, None], params["offset"][:, None]
    torch.testing.assert_close(views.make(0, series, params), series * factor + offset)
    assert factor.log2().mean() == pytest.approx(0.0, abs=0.04)  # log-uniform
    assert factor.min() >= 0.5
    assert factor.max() <= 2.0
    assert offset.mean() == pytest.approx(0.0, abs=0.04)
    assert 0.68 < offset.abs().max() <= 0.7


def test_jitter_is_normal_and_independent() -> None:
    quiet = {**STILL, "jitter": 0.25}
    first, second = made(augmentation(**quiet), torch.zeros(3000, 2, LENGTH), torch.arange(3000))
    for noise in (first, second):
        assert noise.mean() == pytest.approx(0.0, abs=0.002)
        assert noise.std() == pytest.approx(0.25, abs=0.002)
        inside = (noise.abs() < 1.96 * 0.25).double().mean()
        assert inside == pytest.approx(0.95, abs=0.003)

    def correlation(a: Tensor, b: Tensor) -> float:
        return abs(float((a * b).mean() / 0.25**2))

    assert correlation(first, second) < 0.01
    assert correlation(first[:, 0], first[:, 1]) < 0.01
    assert correlation(first[:-1], first[1:]) < 0.01
    assert correlation(first[..., :-1], first[..., 1:]) < 0.01


def test_normal_values_have_a_vector() -> None:
    """Box-Muller on Philox in plain Python, worked out apart from this code; other values would be
    another augmentation."""
    words = torch.tensor([[1, 2], [0xFFFFFFFF, 7]])
    expected = torch.tensor(
        [
            [-0.2628594616, -0.4375154814, 1.748540917, 0.0960400866, -0.4872021198],
            [1.2740025602, -0.5977564185, -1.7282868585, -1.2245849192, -2.8195213923],
        ]
    )
    found = keyed_normal(words, 5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(keyed_normal(words, 9)[:, :5], found)


# --- Keys ----------------------------------------------------------------------------------------


def test_a_view_depends_on_sample_epoch_and_view_alone() -> None:
    views = augmentation(flip=0.5)
    series, indices = some(), 5 * torch.arange(64)
    whole = made(views, series, indices)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = made(views, series[order], indices[order])
    for view in (0, 1):
        assert torch.equal(shuffled[view], whole[view][order])
        for row in (0, 1, 63):
            alone = made(views, series[row : row + 1], indices[row : row + 1])
            assert torch.equal(alone[view][0], whole[view][row])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(made(views, series, indices, epoch=1)[0], whole[0])


def test_compiled_views_are_the_same() -> None:
    views = augmentation(flip=0.5, num_views=1)
    series = some()
    (params,) = views.draw(keys(torch.arange(64)), torch.full((64, 1), LENGTH))
    exported = torch.export.export(_Make(views), (series, dict(params)))
    torch.testing.assert_close(
        exported.module()(series, dict(params)), views.make(0, series, params)
    )


class _Make(torch.nn.Module):
    def __init__(self, views: SeriesViews) -> None:
        super().__init__()
        self.views = views

    def forward(self, series: Tensor, params: dict[str, Tensor]) -> Tensor:
        return self.views.make(0, series, params)


# --- Fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"crop_scale": (0.5, 1.5)},
            r"crop_scale\n.*\[0.5, 1.5\] is no range: set 0 < low <= high <= 1",
        ),
        ({"amplitude": (0.0, 1.0)}, r"amplitude\n.*\[0, 1\] is no range"),
        ({"flip": 2.0}, "flip"),
        ({"length": 0}, "length"),
        ({"size": 32}, "size"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SeriesViews.Config(**{"length": 8, **fields})


@pytest.mark.parametrize(
    ("sample", "right"),
    [
        (SampleSpec((1, 128), "float32"), True),
        (SampleSpec((3, 32, 32)), False),
        (SampleSpec((12,), "int64"), False),
        (SampleSpec((1, 12), "int64"), False),
    ],
)
def test_samples_that_are_no_series_are_refused(sample: SampleSpec, right: bool) -> None:
    facts = RunFacts(60, sample.channels, None, None, 8, 5, 5, other_samples=sample)
    problems = list(SeriesViews.problems(SeriesViews.Config(length=8), facts))
    assert (not problems) is right
    if not right:
        assert str(sample) in problems[0][1]


def test_views_are_announced() -> None:
    views = augmentation(num_views=3).views
    assert [view.shape(2) for view in views] == [(2, LENGTH)] * 3
    assert math.prod(views[0].sides) == LENGTH
