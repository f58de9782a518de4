"""W processes train as one does: every method, and methods of other families that hold no line of
distributed code, with BatchNorm and without, whole and in micro-batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks.curves import METHODS, cases, curves
from tests.ranks.forked import on_ranks

QUICK = ("moco_v2", "masked", "dividedprototypes")
"""A teacher with a queue and groups; a parameter of networks and objective; a divided objective."""
IN_FEW_STEPS = [
    # Half a minute of CPU time in all; with 50 steps each is among the slow ones anyway.
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
]


@cache
def trained(method: str, size: int, steps: int) -> list[dict[str, dict[str, Any]]]:
    """What each rank has found, for all cases of a method."""
    with TemporaryDirectory() as folder:
        ends = on_ranks(lambda world: curves(world, Path(folder), method, steps), size)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, by the largest magnitude of what is expected, or by 0.01."""
    scale = expected.double().abs().max().clamp_min(0.01)
    return float((found.double() - expected.double()).abs().max() / scale)


def assert_alike(method: str, size: int, steps: int) -> None:
    (alone,) = trained(method, 1, steps)
    for rank, found in enumerate(trained(method, size, steps)):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            assert_curve(found[name], expected, f"{name}, rank {rank} of {size}")


def assert_curve(curve: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """That losses, the first gradient and the last state are equal up to rounding in float64."""
    losses = expected["losses"]
    assert losses.dtype == torch.float64
    assert losses.std() > 1e-4, where  # it trains
    assert ((curve["losses"] - losses) / losses).abs().max() < 1e-10, where
    assert curve["gradient"].keys() == expected["gradient"].keys(), where
    for kind, bound in (("gradient", 1e-10), ("state", 1e-9)):
        for key, value in expected[kind].items():
            if value.numel():
                assert distance(curve[kind][key], value) < bound, f"{where}: {kind} {key}"


@pytest.mark.parametrize("method", IN_FEW_STEPS)
def test_two_ranks_train_as_one(method: str) -> None:
    assert_alike(method, 2, 8)


@pytest.mark.slow  # a minute for each method
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 4])
def test_fifty_steps(method: str, size: int) -> None:
    assert_alike(method, size, 50)


@pytest.mark.parametrize("method", IN_FEW_STEPS)
def test_ranks_hold_the_same_bits(method: str) -> None:
    first, second = trained(method, 2, 8)
    for name, curve in first.items():
        assert torch.equal(curve["losses"], second[name]["losses"]), name
        for key, value in curve["state"].items():
            assert torch.equal(value, second[name]["state"][key]), f"{name}: {key}"


def test_every_case_is_there() -> None:
    assert len(list(cases())) == 4 * len(METHODS)
