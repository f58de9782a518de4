"""What of a plugin cannot be imported is seen in its files, and nothing is run to see it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from plugin_distributions import Install

from sslkit.host.importable import import_fault
from sslkit.host.plugins import load_plugins
from sslkit.report.listing import plugin_rows, print_plugins

PLUGIN = """
    from sslkit import hookimpl
    @hookimpl
    def register_losses(): return {TARGETS}
"""
SOUND = {
    "class": "class Mine: ...",
    "imported": "from json import JSONDecoder as Mine",
    "assigned": "Other = Mine = object",
    "below if": "if True:\n    class Mine: ...\nelse:\n    Mine = None",
    "below try": "try:\n    import not_there\nexcept ImportError:\n    pass\nclass Mine: ...",
    "star": "from json import *",
    "lazy": "def __getattr__(name): ...",
    "relative": "from . import helper\nfrom .helper import Mine",
    "loop": "from . import parts\nfrom shelf.parts import Mine",
    "from its package": "from shelf import register_losses\nclass Mine: ...",
}
FAULTS = {
    "no name": ("class Yours: ...", "shelf.parts has no 'Mine'"),
    "inside another": ("class Yours:\n    class Mine: ...", "shelf.parts has no 'Mine'"),
    "no dependency": (
        "import os\nimport not_there.inner",
        "imports 'not_there', which is not installed (SITE/shelf/parts.py:2)",
    ),
    "its own": ("from .gone import Mine", "there is no module 'shelf.gone'"),
    "behind its own": (
        "from .needy import Mine",
        "imports 'not_there', which is not installed (SITE/shelf/needy.py:1)",
    ),
    "syntax": ("def :", "SITE/shelf/parts.py:1)"),
    "null byte": ("class Mine: ...\0", "null bytes"),
}


def installed(install: Install, parts: str) -> Path:
    """A plugin whose package runs, and whose parts must not."""
    mine = PLUGIN.replace("TARGETS", '"mine": "shelf.parts:Mine"')
    files = {
        "shelf/__init__.py": mine,
        "shelf/parts.py": f"{parts}\nraise SystemExit('run')\n" if "\0" not in parts else parts,
        "shelf/helper.py": "Mine = 1",
        "shelf/needy.py": "from not_there import Mine",
    }
    return install("shelf", files, "s = shelf")


@pytest.mark.parametrize("case", SOUND)
def test_what_can_be_imported_is_passed(install: Install, case: str) -> None:
    installed(install, SOUND[case])
    load_plugins()
    assert import_fault("shelf.parts:Mine") is None
    assert "shelf.parts" not in sys.modules


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_imported_is_named(install: Install, case: str) -> None:
    parts, expected = FAULTS[case]
    site = installed(install, parts)
    load_plugins()
    fault = import_fault("shelf.parts:Mine")
    assert fault is not None
    assert expected.replace("SITE", str(site)) in fault
    assert "\n" not in fault
    assert "shelf.parts" not in sys.modules


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("shelf.nowhere:Mine", "there is no module 'shelf.nowhere'"),
        ("shelf.parts.deeper:Mine", "there is no module 'shelf.parts.deeper'"),
        ("nowhere_at_all.parts:Mine", "there is no module 'nowhere_at_all.parts'"),
        ("shelf:Mine", "shelf has no 'Mine'"),
        ("shelf:register_losses", None),
    ],
)
def test_targets_that_lie_nowhere(install: Install, target: str, expected: str | None) -> None:
    installed(install, "")
    load_plugins()
    assert import_fault(target) == expected


def test_every_installed_component_can_be_imported() -> None:
    faults = {each.target: import_fault(each.target) for each in load_plugins().registry.entries()}
    assert not any(faults.values()), faults


def test_the_list_shows_them(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    installed(install, "class Yours: ...")
    rows = plugin_rows(load_plugins())
    (row,) = [row for row in rows if row["distribution"] == "shelf"]
    expected = {"kind": "loss", "component": "mine", "reason": "shelf.parts has no 'Mine'"}
    assert json.loads(json.dumps(row))["unusable"] == [expected]
    assert all(row["unusable"] == [] for row in rows if row["distribution"] != "shelf")
    print_plugins(rows)
    shown = capsys.readouterr().out
    assert "cannot be imported: loss 'mine' (shelf 1.0): shelf.parts has no 'Mine'" in shown
    assert plugin_rows(load_plugins(), "head")[0]["unusable"] == []
