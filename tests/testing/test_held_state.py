"""Whatever a module keeps is seen to change, wherever it lies."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sslkit.testing.held_state import changes, held


class Memory:
    """An object that is no module."""

    def __init__(self) -> None:
        self.rows = [torch.zeros(2)]


def counter() -> Callable[[], None]:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1

    return add


PLACES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "deque": (lambda: deque([1.0], maxlen=1), lambda kept: kept.append(2.0)),
    "set": (lambda: {"a"}, lambda kept: kept.add("b")),
    "dict of lists": (lambda: {"a": [1, 2]}, lambda kept: kept["a"].__setitem__(1, 3)),
    "object": (Memory, lambda kept: kept.rows[0].add_(1.0)),
    "closure": (counter, lambda kept: kept()),
    "torch's generator": (torch.Generator, lambda kept: torch.rand(1, generator=kept)),
    "numpy's generator": (lambda: np.random.default_rng(0), lambda kept: kept.random()),
    "Python's generator": (lambda: random.Random(0), lambda kept: kept.random()),
    "array": (lambda: np.zeros(2), lambda kept: kept.__setitem__(0, 1.0)),
    "hidden module": (lambda: [nn.Linear(1, 1)], lambda kept: nn.init.ones_(kept[0].weight)),
    "hidden inside": (
        lambda: [nn.Sequential(nn.Linear(1, 1))],
        lambda kept: nn.init.ones_(kept[0][0].weight),
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_change_is_seen(place: str) -> None:
    make, change = PLACES[place]
    module, kept = nn.Module(), make()
    vars(module)["kept"] = kept
    before = held(module)
    assert changes(before, held(module)) == []
    change(kept)
    assert len(changes(before, held(module))) == 1


def test_statistics_of_batch_norm_may_change() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    before = held(module)
    module(torch.randn(4, 2))
    assert changes(before, held(module)) == []


def test_what_holds_itself_is_looked_through_once() -> None:
    module, memory = nn.Module(), Memory()
    vars(memory)["itself"] = memory
    vars(module)["kept"] = memory
    assert changes(held(module), held(module)) == []
