"""One process and several go the same way: what `World` is asked, and what only rank 0 may do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslkit.parallel.world import OneProcess
from tests.ranks.forked import launch_variables

# --- One process ----------------------------------------------------------------------------------


def test_one_process_gives_back_what_it_is_given() -> None:
    world, rows = OneProcess(), torch.rand(3, 2)
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.collect("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.once(lambda: "a") == "a"
    assert world.any(True) is True
    assert world.any(False) is False
    assert world.sum(rows) is rows
    assert world.mean(rows) is rows
    assert world.gather(rows) is rows
    with pytest.raises(ZeroDivisionError):
        world.once(lambda: 1 // 0)


def test_one_process_imports_no_distributed_code() -> None:
    """`import sslkit.parallel.world` is cheap: neither torch nor its distributed part."""
    code = "import sys, sslkit.parallel.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Commands that work in one process ------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "cpu/simclr_cifar10"],
        ["eval", "nowhere"],
        ["embed", "nowhere", "--out", "features.parquet"],
        ["pack", "{name: digits}", "--out", "digits.pack"],
        ["export", "nowhere", "--format", "timm"],
        ["compare", "quickstart", "--seeds", "2"],
    ],
)
def test_every_command_that_writes_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    from sslkit.cli.app import main

    monkeypatch.chdir(tmp_path)
    for name, value in launch_variables(rank=1, size=2, port=1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: torchrun has started 2 processes")
    assert list(tmp_path.iterdir()) == []
