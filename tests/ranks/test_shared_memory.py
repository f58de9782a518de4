"""Ranks of one machine decode a set once, together, and hold it once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslkit.api import ImageReader, UnreadableImageError
from sslkit.data.cached_split import CachedSplit
from sslkit.errors import DataError, RankError
from sslkit.parallel import shared_memory
from sslkit.parallel.shared_memory import shared_empty
from sslkit.parallel.world import World
from tests.ranks.forked import LostRankError, on_ranks

IMAGES = 700


class Counting(ImageReader):
    """Images that hold their number, every 100th of them damaged."""

    channels = 1
    image_size = (2, 2)

    def __init__(self) -> None:
        self.labels = np.arange(IMAGES)
        self.reads: list[int] = []

    def __len__(self) -> int:
        return IMAGES

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads.append(index)
        if index % 100 == 99:
            raise UnreadableImageError("damaged")
        return np.full((2, 2, 1), index % 251, dtype=np.uint8)

    def fingerprint(self) -> str:
        return "counting"


def opened(world: World | None, **more: Any) -> tuple[CachedSplit, Counting]:
    reader = Counting()
    fields = {"max_corrupt_fraction": 0.1, "seed": 0, "num_threads": 2, **more}
    return CachedSplit(reader, world=world, **fields), reader


def test_a_set_is_decoded_once_and_is_what_one_process_has() -> None:
    def work(world: World) -> Any:
        split, reader = opened(world)
        assert split.resident is not None
        assert split.labels is not None
        return split.resident.clone(), split.labels.clone(), split.report(), reader.reads

    alone, _ = opened(None)
    assert alone.resident is not None
    assert alone.labels is not None
    ends = on_ranks(work, 3)
    for images, labels, report, _ in ends:
        assert torch.equal(images, alone.resident)
        assert torch.equal(labels, alone.labels)
        assert report == alone.report()
        assert report["num_unreadable"] == 7
    first_reads = sum(len(set(reads)) for *_, reads in ends)
    assert first_reads <= IMAGES + 3 * 7 * 3  # each once, and what stands in for damaged ones


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the files of shared memory are made in."""
    monkeypatch.setattr(shared_memory, "_MEMORY", tmp_path / "none")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def named_by_rank() -> int | None:
    """As if each rank were in a container of its own."""
    return int(os.environ["RANK"])


@pytest.mark.parametrize("namespace", [None, lambda: None, named_by_rank])
def test_it_is_one_memory_and_leaves_no_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, namespace: Callable[[], int | None] | None
) -> None:
    """Also where it has to have a name: on other systems than Linux, and between containers."""
    if namespace is not None:
        monkeypatch.setattr(shared_memory, "_process_namespace", namespace)

    def work(world: World) -> Any:
        shared = shared_empty(world, (4, 2), torch.int32)
        if world.rank == 1:
            shared[1] = 7
        world.barrier()
        return shared[1].tolist(), sorted(path.name for path in place.glob("sslkit-*"))

    assert on_ranks(work) == [([7, 7], [])] * 2


def test_it_leaves_no_file_where_all_are_killed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is there, and before all have it."""
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
    ends = on_ranks(lambda world: shared_empty(world, (4, 2), torch.int32))
    assert [type(end) for end in ends] == [LostRankError] * 2
    assert list(place.iterdir()) == []


def test_one_rank_that_cannot_read_ends_all() -> None:
    ends = on_ranks(lambda world: opened(world, max_corrupt_fraction=0.001))
    assert any(isinstance(end, DataError) for end in ends)
    assert all(isinstance(end, (DataError, RankError)) for end in ends)
    assert all("are unreadable so far" in str(end) for end in ends)
