"""Every tracker that comes with sslkit meets the laws of trackers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.testing import Check, check_plugin, checks


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=str(check),
            marks=[pytest.mark.slow] if check.law.slow else [],  # interpreters and trainings
        )
        for check in checks("tracker:none")
    ],
)
def test_none(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", checks("tracker:mlflow", log_encoder=True), ids=str)
@pytest.mark.slow  # imports MLflow, which makes a store
def test_mlflow(check: Check) -> None:
    check()


@pytest.mark.slow  # imports MLflow, which makes a store
def test_the_store_of_the_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kit tries MLflow in a store of its own, also where the environment names one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    monkeypatch.chdir(tmp_path)
    rows = {row["law"]: row for row in check_plugin("tracker:mlflow", fast=True).rows}
    assert rows["what-was-stored-is-not-stored-again"]["text"] == "4 points"
    assert rows["groups-are-found-again"]["status"] == "passed"
    assert list(tmp_path.iterdir()) == []
