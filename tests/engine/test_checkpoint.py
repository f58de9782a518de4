"""Checkpoints on a disk that is full, damaged or crowded."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sslkit.engine.checkpoint import Checkpoints
from sslkit.errors import TrainingError


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_full_disk_is_one_line_and_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"value": torch.zeros(1)})
    with files_up_to(20_000), pytest.raises(TrainingError) as caught:
        checkpoints.save(2, {"value": torch.zeros(100_000)})
    assert "\n" not in str(caught.value)
    assert "step-00000002.pt: the checkpoint cannot be written (File too large)" in str(
        caught.value
    )
    assert names(checkpoints) == ["step-00000001.pt"]


def test_what_cannot_be_saved_is_no_full_disk(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> str:
            raise RuntimeError("a mistake in a method")

    with pytest.raises(RuntimeError, match="a mistake in a method"):
        Checkpoints(tmp_path, keep=1).save(1, {"value": Broken()})


def test_killed_saves_do_not_pile_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "saving.tmp").write_bytes(b"half a checkpoint")
    checkpoints.save(3, {})
    assert names(checkpoints) == ["step-00000003.pt"]


def test_damaged_newer_checkpoint_is_not_kept_in_place_of_a_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (6, 12):
        checkpoints.save(step, {})
    (tmp_path / "step-00000012.pt").write_bytes(b"damaged")
    state, damaged = checkpoints.load_newest()
    assert state is not None
    assert (state["step"], len(damaged)) == (6, 1)
    checkpoints.save(7, {})
    checkpoints.save(8, {})
    assert names(checkpoints) == ["step-00000007.pt", "step-00000008.pt"]


def test_order_is_that_of_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (99_999_999, 100_000_000):
        checkpoints.save(step, {})
    assert [path.name for path in checkpoints.paths()] == [
        "step-99999999.pt", "step-100000000.pt",
    ]  # fmt: skip
