"""A store that another program has locked: an error of ours, and nothing of MLflow's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_WITH_A_LOCK = """
import sqlite3, sys
from pathlib import Path
from sslkit.api.tracking import MetricPoint, RunView
from sslkit.builtin.mlflow_tracker import MLflowTracker

folder = Path(sys.argv[1])
config = MLflowTracker.Config(tracking_uri=f"sqlite:///{folder}/mlflow.db")
tracker = MLflowTracker(config)
tracker.start(RunView(folder, "a run", {}, {}), None)
holder = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
holder.execute("BEGIN EXCLUSIVE")
try:
    tracker.log_metrics([MetricPoint("train/loss", 1.0, 1, 1)])
except Exception as error:
    print("database is locked" in str(error))
"""


@pytest.mark.slow  # SQLite waits for the lock for 20 s
@pytest.mark.timeout(180)
def test_a_locked_store_says_nothing_by_itself(tmp_path: Path) -> None:
    """In a process of its own: pytest takes over logging. What is raised is reported in one line by
    the run (`test_log`)."""
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_LOCK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr
    assert done.stderr == ""
