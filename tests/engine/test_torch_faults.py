"""Convolutions whose weight gradient torch leaves unset in bf16 on a CPU are found before a run
begins. What is asked of torch here is what a run would ask."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from sslkit.engine.display import Silent
from sslkit.engine.torch_faults import (
    Convolution,
    find_faulty,
    leaves_gradient_unset,
    recorded_convolutions,
)
from sslkit.errors import RecipeError
from sslkit.workflows.plan import make_plan

BF16 = ["train.precision=bf16", "evaluate=[]"]


def convolution(size: int, kernel: int, stride: int, padding: int, groups: int = 1) -> Convolution:
    pairs = [(value, value) for value in (size, kernel, stride, padding, 1)]
    return Convolution("conv", *pairs, (64, 64, groups))


def gradients_differ(c: Convolution) -> bool:
    """Whether torch, asked for this gradient 20 times on used memory, is ever far from float32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, c.channels[0], *c.map_size, generator=generator)
    layer = nn.Conv2d(
        c.channels[0],
        c.channels[1],
        c.kernel,
        c.stride,
        c.padding,
        groups=c.channels[2],
        bias=False,
    )
    layer(images).sum().backward()
    expected = layer.weight.grad.clone()
    for _ in range(20):
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            made = layer(images)
        used = [torch.full_like(layer.weight, torch.nan, dtype=torch.bfloat16) for _ in range(8)]
        del used
        made.float().sum().backward()
        error = (layer.weight.grad - expected).abs().max() / expected.abs().max()
        if not error < 0.1:
            return True
    return False


@pytest.mark.slow  # 6 seconds
@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 2, 1), (1, 3, 2, 1, 4), (2, 3, 3, 1), (1, 7, 2, 3), (1, 2, 2, 1), (3, 2, 4, 1),
        (2, 3, 2, 1), (1, 3, 1, 1), (4, 3, 2, 1), (1, 1, 2, 0), (7, 3, 2, 1), (1, 3, 2, 1, 64),
    ],
)  # fmt: skip
def test_it_is_found_where_torch_has_it(shape: tuple[int, ...]) -> None:
    """Size of the map, kernel, stride, padding, groups. Whether it shows in a step is a matter of
    what the memory held; it has to be found wherever it does."""
    c = convolution(*shape)
    assert find_faulty({c}, "bf16") or not gradients_differ(c)
    assert find_faulty({c}, "fp32") == []


@pytest.mark.slow  # 4 seconds
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
@pytest.mark.parametrize("shape", [(1, 3, 2, 1), (3, 2, 4, 1), (2, 3, 2, 1)])
def test_what_is_found_is_no_matter_of_luck(shape: tuple[int, ...]) -> None:
    c = convolution(*shape)
    sizes = c.map_size, c.kernel, c.stride, c.padding, c.dilation, c.channels
    found = {leaves_gradient_unset.__wrapped__(*sizes, torch.bfloat16) for _ in range(5)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 3, 2, 1), True), ((3, 3, 2, 1), False), ((2, 3, 3, 1), True), ((4, 7, 2, 3), True)],
)
def test_positions_that_only_meet_padding(shape: tuple[int, ...], expected: bool) -> None:
    assert convolution(*shape).meets_padding_only is expected


def test_maps_are_those_that_the_network_has() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same"))
    found: set[Convolution] = set()
    with recorded_convolutions(network, found):
        network(torch.zeros(2, 3, 10, 6))
    assert sorted((c.name, c.map_size, c.stride) for c in found) == [
        ("0", (10, 6), (2, 2)),
        ("2", (5, 3), (1, 1)),
    ]


@pytest.mark.slow  # 2 seconds
def test_a_run_is_refused_before_it_begins(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage of the network halves a map of 1x1 where views have 16 pixels."""
    monkeypatch.setattr(  # also with a torch that is mended
        "sslkit.engine.torch_faults.leaves_gradient_unset", lambda size, *rest: size == (1, 1)
    )
    with pytest.raises(RecipeError) as caught:
        make_plan(str(tiny), BF16, Silent())
    message = str(caught.value)
    assert message.startswith("train.precision: bf16 on a CPU")
    assert "(3x3, stride 2x2, on a map of 1x1)" in message
    assert "set train.precision=fp32" in message
    make_plan(str(tiny), [*BF16, "augmentation.size=64"], Silent())
    make_plan(str(tiny), BF16[1:], Silent())
