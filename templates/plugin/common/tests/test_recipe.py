"""The recipe that the package ships is found by its name and runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import sslkit


def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sslkit.run("newname")
    assert math.isfinite(result.metrics["train/loss"])
