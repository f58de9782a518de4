"""The page on compatibility states what is so."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest
from pages import DOCS, REPOSITORY

from sslkit.deprecation import ENDS_WITH

PAGE = (DOCS / "reference" / "compatibility.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROWS = re.findall(
    r"^\| ([\w-]+) \| ([\d.]+) and later(?:, below (\d+))? \| ([\d.]+) \|$", PAGE, re.M
)


def test_the_table_has_what_decides_whether_sslkit_works() -> None:
    names = {name for name, *_ in ROWS}
    assert {"Python", "torch", "torchvision", "timm", "mlflow", "pydantic", "typer"} <= names


@pytest.mark.parametrize(("name", "least", "below", "tested"), ROWS, ids=[row[0] for row in ROWS])
def test_supported_is_what_the_package_asks_for(
    name: str, least: str, below: str, tested: str
) -> None:
    wanted = f">={least}" + (f",<{below}" if below else "")
    if name == "Python":
        assert PROJECT["requires-python"] == wanted
    else:
        assert f"{name}{wanted}" in PROJECT["dependencies"]
        assert version(name)  # what is tested is at least installed
    assert [int(part) for part in tested.split(".")] >= [int(part) for part in least.split(".")]


def test_deprecations_end_with_a_later_minor_release() -> None:
    ends = [int(part) for part in ENDS_WITH.removeprefix("sslkit ").split(".")]
    now = [int(part) for part in PROJECT["version"].split(".")[:2]]
    assert ends > [now[0], now[1] + 1]  # the next minor release still has what is deprecated
