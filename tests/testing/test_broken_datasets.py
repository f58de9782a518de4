"""Each fault of a data source breaks the one law that is meant for it, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broken_datasets import BROKEN, SOUND, FingerprintOfTheProcess, Sound, write

from sslkit.api import DataSource
from sslkit.testing import check_plugin, checks


def fields_of(component: type[DataSource], folder: Path) -> dict[str, Any]:
    return {"folder": write(folder)} if "folder" in component.Config.model_fields else {}


@pytest.mark.parametrize("component", [*SOUND, *BROKEN], ids=lambda found: found.__name__)
def test_a_fault_breaks_its_law_alone(component: type[DataSource], tmp_path: Path) -> None:
    rows = check_plugin(component, fast=True, **fields_of(component, tmp_path)).rows
    found = {row["law"]: row["text"] for row in rows if row["status"] == "failed"}
    law = BROKEN.get(component)
    assert list(found) == ([law] if law else []), found


@pytest.mark.slow  # processes that import torch
def test_a_fingerprint_of_the_process_is_found(tmp_path: Path) -> None:
    for component in (Sound, FingerprintOfTheProcess):
        rows = check_plugin(component, **fields_of(component, tmp_path)).rows
        found = [row["law"] for row in rows if row["status"] == "failed"]
        assert found == ([] if component is Sound else ["fingerprint-is-that-of-other-processes"])


@pytest.mark.parametrize("name", ["SharedPosition", "SharedArchive"])
def test_what_threads_share_is_found_every_time(name: str, tmp_path: Path) -> None:
    shared = next(cls for cls in BROKEN if cls.__name__ == name)
    fields = fields_of(shared, tmp_path)
    for _ in range(5):
        tried = {str(check): check for check in checks(shared, fast=True, **fields)}
        assert tried["threads-read-the-same"].outcome().status == "failed"
