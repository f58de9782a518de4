"""Data sources that come with sslkit meet the laws of their kind, on files in their formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import SOURCES

from sslkit import installed_components
from sslkit.testing import check_plugin


def test_every_source_is_tried() -> None:
    entries = installed_components().entries("dataset")
    ours = {entry.name for entry in entries if entry.distribution == "sslkit"}
    assert ours == {name for name, _ in SOURCES}


@pytest.mark.parametrize(
    "fast",
    [True, pytest.param(False, marks=pytest.mark.slow)],  # processes that import torch
    ids=["fast", "all"],
)
@pytest.mark.parametrize(
    ("name", "write"), SOURCES, ids=lambda each: getattr(each, "__name__", each)
)
def test_laws(
    name: str, write: Callable[[Path], dict[str, Any]], fast: bool, tmp_path: Path
) -> None:
    report = check_plugin(f"dataset:{name}", fast=fast, **write(tmp_path))
    assert not report.broken
    status = {row["law"]: row["status"] for row in report.rows}
    assert status["fingerprint-changes-with-the-data"] == "passed"
