"""Which GPU a process takes. No GPU is needed: what torch would say of them is given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sslkit.errors import RecipeError
from sslkit.experiment.resolve import gpu_of_rank
from sslkit.parallel.world import World
from tests.ranks.forked import on_ranks


def indices(monkeypatch: pytest.MonkeyPatch, seen: list[list[str]]) -> list[object]:
    """What two ranks take. seen: by rank, the GPUs that it sees."""

    def work(world: World) -> int:
        gpus = seen[world.rank]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        properties = [SimpleNamespace(uuid=name) for name in gpus]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: properties[n])
        return gpu_of_rank(world)

    return on_ranks(work)


def test_each_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert indices(monkeypatch, [["a", "b"], ["a", "b"]]) == [0, 1]


def test_each_takes_the_only_one_that_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert indices(monkeypatch, [["a"], ["b"]]) == [0, 0]


@pytest.mark.parametrize("seen", [[["a"], ["a"]], [[], []]])
def test_two_processes_of_one_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, seen: list[list[str]]
) -> None:
    (first, _) = indices(monkeypatch, seen)
    assert isinstance(first, RecipeError)
    assert "train.device: 2 processes on this machine, and this one sees" in str(first)
