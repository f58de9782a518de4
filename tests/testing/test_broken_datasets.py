"""Each fault of a data source breaks the one law that is meant for it, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sources_with_files as files
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


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("name", ["SharedPosition", "SharedArchive"])
def test_what_threads_share_is_found_every_time(name: str, tmp_path: Path) -> None:
    shared = next(cls for cls in BROKEN if cls.__name__ == name)
    fields = fields_of(shared, tmp_path)
    for _ in range(5):
        tried = {str(check): check for check in checks(shared, fast=True, **fields)}
        assert tried["threads-read-the-same"].outcome().status == "failed"


def in_folder(source: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """What is found of a source whose files lie in a folder that this process is not in."""
    rows = check_plugin(source, fast=True, **source.write(folder)).rows
    return {row["law"]: dict(row) for row in rows}


@pytest.mark.parametrize("source", [*files.SOUND, *files.BROKEN], ids=lambda cls: cls.__name__)
def test_files_are_tried_wherever_a_source_names_them(source: type[Any], tmp_path: Path) -> None:
    found = in_folder(source, tmp_path)
    broken = {law: row["text"] for law, row in found.items() if row["status"] == "failed"}
    law = files.BROKEN.get(source)
    assert list(broken) == ([law] if law else []), broken
    if not law:
        assert {found[law]["status"] for law in files.FILE_LAWS} == {"passed"}


@pytest.mark.parametrize("source", files.OUT_OF_REACH, ids=lambda cls: cls.__name__)
def test_files_that_cannot_be_copied_are_said(source: type[Any], tmp_path: Path) -> None:
    found = in_folder(source, tmp_path)
    laws, reason = files.OUT_OF_REACH[source]
    assert [law for law, row in found.items() if row["status"] == "failed"] == []
    for law in laws:
        assert found[law]["status"] == "untried"
        assert found[law]["text"].startswith(reason)
        assert "change a file of its data by hand" in found[law]["text"]


def test_equal_keys_and_likeness_of_labels_are_said_in_words(tmp_path: Path) -> None:
    one_key = next(cls for cls in BROKEN if cls.__name__ == "OneKey")
    (line,) = check_plugin(one_key, fast=True, **fields_of(one_key, tmp_path)).broken
    assert "seen: train: samples 0 and 3 have the key 'even'; of 40 samples 3 have one" in line
    (note,) = check_plugin(Sound, fast=True, **fields_of(Sound, tmp_path)).notes
    assert note.startswith("of 40 samples ")
    assert " have the label of the one that is most like them by its values; by chance 3" in note


def test_what_is_noticed_is_named(tmp_path: Path) -> None:
    text = in_folder(files.LabelsBeside, tmp_path)["fingerprint-changes-with-the-data"]["text"]
    assert text == "noticed: 24 files, 00.raw gone, labels.txt and 1 more"
