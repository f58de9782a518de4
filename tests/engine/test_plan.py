"""The dry run refuses what the run would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.plan import make_plan


def test_dry_run_checks_the_tracker(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI"):
        make_plan(str(tiny), ["tracking={name: mlflow}"], Silent())
