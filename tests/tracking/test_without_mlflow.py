"""Everything but the MLflow tracker works where mlflow cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())

import sslkit
modules = [m.name for m in pkgutil.walk_packages(sslkit.__path__, "sslkit.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert "sslkit.builtin.mlflow_tracker" in modules

from sslkit.builtin.no_tracker import NoTracker
from sslkit.api import ComponentConfig, RunView
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import RunLog

folder = RunFolder.create(sys.argv[1], "x")
view = RunView(folder.path, "x-s0", {}, {})
with RunLog(folder, NoTracker(ComponentConfig()), view) as log:
    log.log({"train/loss": 1.0}, 1)
    log.artifact("metrics.jsonl")
assert log.finish("finished")

from sslkit.builtin.mlflow_tracker import MLflowTracker
try:
    MLflowTracker(MLflowTracker.Config(tracking_uri="sqlite:///x.db")).start(view, None)
except ModuleNotFoundError as error:
    print("blocked:", error.name)
"""


@pytest.mark.slow  # 7 seconds
def test_all_of_sslkit_imports_and_logs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "blocked: mlflow\n"
    assert done.stderr == ""
    (metrics,) = (tmp_path / "runs").glob("x-*/metrics.jsonl")
    assert '"train/loss": 1.0' in metrics.read_text()
