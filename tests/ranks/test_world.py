"""What ranks say to each other, on real processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from sslkit.engine.signals import StopSignals
from sslkit.errors import RankError, RecipeError
from sslkit.parallel.world import World
from tests.ranks.forked import LostRankError, on_ranks


def test_what_each_rank_is_told() -> None:
    def work(world: World) -> Any:
        name = f"rank {world.rank}"
        return [
            world.collect(name),
            world.once(lambda: name),
            world.broadcast(name),
            world.any(world.rank == 2),
            world.any(False),
            world.sum(torch.tensor([1.0, 2.0])).tolist(),
            world.mean(torch.tensor([float(world.rank)])).tolist(),
        ]

    names = ["rank 0", "rank 1", "rank 2"]
    told = [names, "rank 0", "rank 0", True, False, [3.0, 6.0], [1.0]]
    assert on_ranks(work, 3) == [told] * 3


def test_gather_is_differentiable() -> None:
    def work(world: World) -> Any:
        own = torch.full((2, 3), float(world.rank), requires_grad=True)
        rows = world.gather(own)
        (rows * torch.arange(6.0)[:, None]).sum().backward()  # type: ignore[no-untyped-call]
        return rows[:, 0].tolist(), own.grad[:, 0].tolist()  # type: ignore[index]

    everyone = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert on_ranks(work, 3) == [(everyone, [0.0, 3.0]), (everyone, [6.0, 9.0]),
                                 (everyone, [12.0, 15.0])]  # fmt: skip


def test_rows_of_several_tensors_in_one_message() -> None:
    def work(world: World) -> Any:
        r = world.rank
        given = {
            "indices": torch.arange(2) + 10 * r,
            "embedding": torch.full((2, 2, 1), r + 0.5, dtype=torch.float64),
            "half": torch.full((2, 1), r, dtype=torch.bfloat16),
            "flag": torch.tensor([True, False]),
        }
        return {name: (str(v.dtype), v.tolist()) for name, v in world.gather_rows(given).items()}

    expected = {
        "indices": ("torch.int64", [0, 1, 10, 11]),
        "embedding": ("torch.float64", [[[0.5], [0.5]]] * 2 + [[[1.5], [1.5]]] * 2),
        "half": ("torch.bfloat16", [[0.0]] * 2 + [[1.0]] * 2),
        "flag": ("torch.bool", [True, False] * 2),
    }
    expected["embedding"] = ("torch.float64", [[[0.5], [0.5]]] * 2 + [[[1.5], [1.5]]] * 2)
    found = on_ranks(work)
    assert found[0] == found[1]
    assert found[0]["indices"] == expected["indices"]
    assert found[0]["half"] == expected["half"]
    assert found[0]["flag"] == expected["flag"]
    assert [rows[0] for rows in found[0]["embedding"][1]] == [[0.5], [0.5], [1.5], [1.5]]


def test_what_one_rank_raises_ends_all_with_its_words() -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            raise RecipeError("data: no such file")
        world.sum(torch.ones(2))

    first, second, third = on_ranks(work, 3)
    assert isinstance(first, RankError)
    assert str(first) == "ended with rank 1: data: no such file"
    assert str(second) == "data: no such file"
    assert [end.said for end in (first, second, third)] == [False, True, True]
    assert second.exit_code == 2


def test_what_rank_0_cannot_do_is_raised_on_all() -> None:
    ends = on_ranks(lambda world: world.once(lambda: 1 // 0))
    assert isinstance(ends[0], ZeroDivisionError)
    assert "by zero" in str(ends[1])


@pytest.mark.slow  # 9 seconds
def test_a_rank_that_dies_ends_the_others() -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            os._exit(9)
        world.sum(torch.ones(2))

    first, second, third = on_ranks(work, 3)
    assert isinstance(second, LostRankError)
    assert isinstance(first, RankError)
    assert isinstance(third, RankError)
    assert str(first) == str(third) == "rank 1 was lost"


@pytest.mark.slow  # 2 seconds
def test_one_rank_says_that_rank_0_died() -> None:
    """The store went with it, and no parent is here that could choose."""

    def work(world: World) -> None:
        if world.is_first:
            os._exit(9)
        world.sum(torch.ones(2))

    _, second, third = on_ranks(work, 3)
    assert str(second) == str(third) == "rank 0 was lost"
    assert [second.said, third.said] == [False, True]


def test_a_signal_while_the_ranks_agree_counts_the_next_time() -> None:
    """The others cannot know of it any more: all ranks get the same answers."""

    def work(world: World) -> list[bool]:
        stop, ask = StopSignals(), world.any

        def any_then_signal(value: bool) -> bool:
            answer = ask(value)
            if world.rank == 1:
                stop._handle(signal.SIGTERM, None)
            return answer

        world.any = any_then_signal  # type: ignore[method-assign]
        return [stop.agree(world) for _ in range(3)]

    assert on_ranks(work) == [[False, True, True]] * 2
