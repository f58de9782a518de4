"""Many paths in few bytes."""

from __future__ import annotations

import os
import sys

import pytest

from sslkit.builtin.sources.path_table import FolderRun, PathTable

PATHS = ["top.png", "a/1.png", "a/2.png", "a/b/ü €.jpg", "c/1.png", "a/3.png"]


def test_paths_come_back_in_order():
    table = PathTable(PATHS)
    assert list(table) == PATHS
    assert [table[i] for i in range(len(table))] == PATHS
    assert table[-1] == "a/3.png"
    assert table[1:4] == PATHS[1:4]
    assert len(table) == 6
    assert "a/2.png" in table
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            table[beyond]
    assert list(PathTable()) == []
    assert list(PathTable().runs()) == []


def test_runs_are_the_folders_in_order():
    runs = list(PathTable(PATHS).runs())
    assert runs == [
        FolderRun("", 0, 1),
        FolderRun("a", 1, 3),
        FolderRun("a/b", 3, 4),
        FolderRun("c", 4, 5),
        FolderRun("a", 5, 6),
    ]


def test_names_that_are_no_utf8_come_back_as_they_are():
    name = os.fsdecode(b"bad\xff.png")
    assert PathTable([f"x/{name}"])[0] == f"x/{name}"


def test_a_file_costs_its_name_and_eight_bytes():
    count = 50_000
    table = PathTable(f"class_{i // 500}/image_{i:08d}.png" for i in range(count))
    taken = sum(sys.getsizeof(part) for part in vars(table).values())
    taken += sum(map(sys.getsizeof, table._folders))
    assert taken / count < 18 + 8 + 8  # a third more than is needed: buffers grow in steps
