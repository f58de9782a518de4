"""Checkpoints on a disk that is full, damaged or crowded."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sslkit.errors import CheckpointError, TrainingError
from sslkit.runs import checkpoint
from sslkit.runs.checkpoint import Checkpoints, load


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


# --- Damage ---------------------------------------------------------------------------------------


def state() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(7, 5, generator=generator) for i in range(8)}
    return {"method": weights, "lr": 0.1, "steps_per_epoch": 3, "probe": None}


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """At 500 places over the whole file, and at every bit of its last hundred bytes."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, state())
    path = checkpoints.save(2, state())
    bits = path.stat().st_size * 8
    for bit in [*range(0, bits, bits // 500), *range(bits - 800, bits)]:
        flip(path, bit)
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert "\n" not in str(caught.value)
        flip(path, bit)
    assert load(path)["step"] == 2
    flip(path, bits // 2)
    found, damaged = checkpoints.load_newest()
    assert found is not None
    assert found["step"] == 1
    assert "are not those that were written" in damaged[0]


def test_a_checkpoint_that_is_cut_off_or_longer_is_noticed(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(1, state())
    data = path.read_bytes()
    for changed in (data[:-1], data[:-80], data[: len(data) // 2], b"", data + b"\n", data * 2):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            load(path)


def test_torch_reads_checkpoints_by_itself(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(1, state())
    for mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=mmap)
        torch.testing.assert_close(found["method"], state()["method"], rtol=0, atol=0)


def test_checkpoints_of_the_first_release_are_read(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": 1, "step": 1, **state()}, path)
    assert load(path)["step"] == 1
    torch.save({"format": checkpoint.FORMAT, "step": 1, **state()}, path)  # its digest was lost
    with pytest.raises(CheckpointError, match="its digest is damaged"):
        load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="written in checkpoint format 99"):
        load(path)


def test_moved_run_folder_is_not_made_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    (tmp_path / "run").mkdir()
    checkpoints.save(1, state())
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(TrainingError, match="is gone") as caught:
        checkpoints.save(2, state())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
