"""A machine without MLflow trains, evaluates and compares with another tracker or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

BLOCKER = """\
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        return None

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def sslkit_without_mlflow(tmp_path: Path) -> Command:
    """Runs the command in a process that cannot import MLflow."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sslkit", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow  # seven interpreters that import torch
@pytest.mark.timeout(300)
def test_runs_and_comparisons_need_no_mlflow(
    tiny: Path, tmp_path: Path, sslkit_without_mlflow: Command
) -> None:
    done = sslkit_without_mlflow("compare", str(tiny), "-o", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("comparisons/*/runs/*/results.json"))) == 1


@pytest.mark.slow  # 10 seconds
def test_asking_for_it_is_one_line_before_anything_is_trained(
    tiny: Path, tmp_path: Path, sslkit_without_mlflow: Command
) -> None:
    done = sslkit_without_mlflow("run", str(tiny), "-o", "tracking={name: mlflow}")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "mlflow" in line
    assert "tracking" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))
