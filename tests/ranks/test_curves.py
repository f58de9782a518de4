"""W processes train as one does: every method, and methods of other families that hold no line of
distributed code, with BatchNorm and without, whole and in micro-batches, in float64 and float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.ranks.curves import METHODS, cases, curves
from tests.ranks.differences import BOUNDS, differences, of_curve
from tests.ranks.forked import on_ranks
from tests.ranks.sketches import SKETCHES

QUICK = ("masked", "dividedprototypes")
"""A parameter of networks and objective; a divided objective. A teacher with a queue and groups is
in test_elastic.py."""


@cache
def trained(method: str, size: int, steps: int) -> list[dict[str, dict[str, Any]]]:
    """What each rank has found, for all cases of a method."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        ends = on_ranks(lambda world: curves(world, path, method, steps), size, limit_s=800)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


def assert_alike(method: str, size: int, steps: int) -> None:
    (alone,) = trained(method, 1, steps)
    ranks = trained(method, size, steps)
    for rank, found in enumerate(ranks):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            where = f"{name}, rank {rank} of {size}"
            assert_close(differences(found[name], expected), where)
            assert expected["double"]["losses"].std() > 1e-4, name  # it trains
            for kind in ("double", "single"):
                assert_same_bits(found[name][kind], ranks[0][name][kind], name)


def assert_curve(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """That losses, the first gradient and the last state are equal up to rounding in float64."""
    assert expected["losses"].dtype == torch.float64
    assert expected["losses"].std() > 1e-4, where  # it trains
    assert_close(of_curve(found, expected), where)


def assert_close(apart: dict[str, float], where: str) -> None:
    assert {what: far for what, far in apart.items() if not far < BOUNDS[what]} == {}, where


def assert_same_bits(found: dict[str, Any], first: dict[str, Any], name: str) -> None:
    assert torch.equal(found["losses"], first["losses"]), name
    for key, value in first["state"].items():
        assert torch.equal(found["state"][key], value), f"{name}: {key}"


@pytest.mark.slow  # 26 seconds
@pytest.mark.parametrize("method", QUICK)
def test_two_ranks_train_as_one(method: str) -> None:
    assert_alike(method, 2, 8)


@pytest.mark.slow  # half a minute for each, most of it the messages of BatchNorm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 4])
def test_many_steps(method: str, size: int) -> None:
    """Some epochs of 6 steps; `python -m tests.benchmarks.ranks_exactness` takes 50 of all."""
    shipped = size == 2 and method not in SKETCHES
    assert_alike(method, size, 50 if shipped else 14)


def test_every_case_is_there() -> None:
    assert len(list(cases())) == 4 * len(METHODS)
