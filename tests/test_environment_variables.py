"""The environment variables that sslkit reads: one list, read in one place, and their values."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sslkit
from sslkit import environment_variables as variables
from sslkit.errors import RecipeError

PACKAGE = Path(sslkit.__file__).parent
WHOLE = {"builtin/mlflow_ui.py", "builtin/mlflow_store.py", "workflows/compare/process.py"} | {
    "runs/environment.py",
    "parallel/local.py",
    "host/schema_cache.py",
    "testing/component_laws.py",
    "testing/interpreters.py",
    "testing/prepared.py",
    "testing/tracker_bench.py",
    "testing/forked.py",
}
"""Files that hand the environment as a whole to another program, or add to it."""


def reads(path: Path) -> list[str]:
    """Places that ask `os.environ` or `os.getenv` for a variable."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Subscript, ast.Compare)) else ""
        if text.startswith(("os.environ.get(", "os.environ[", "os.getenv(")) or text.endswith(
            "in os.environ"
        ):
            found.append(f"{path.relative_to(PACKAGE)}: {text}")
    return found


def test_variables_are_read_in_one_place() -> None:
    files = set(PACKAGE.rglob("*.py")) - {PACKAGE / "environment_variables.py"}
    assert [place for path in sorted(files) for place in reads(path)] == []
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in files
        if "os.environ" in path.read_text(encoding="utf-8")
    }
    assert users <= WHOLE


def test_the_list_is_whole_and_names_each_once() -> None:
    defined = [each for each in vars(variables).values() if isinstance(each, variables.Variable)]
    assert {each.name for each in variables.ALL} == {each.name for each in defined}
    assert len({each.name for each in variables.ALL}) == len(variables.ALL) == len(defined)


@pytest.mark.parametrize(
    ("text", "number"), [(None, None), ("", None), ("0", 0), ("1", 1), ("064", 64)]
)
def test_numbers(monkeypatch: pytest.MonkeyPatch, text: str | None, number: int | None) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("WORLD_SIZE", text)
    assert variables.WORLD_SIZE.text() == text
    assert variables.WORLD_SIZE.number() == number


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "²", "1(x4)", " "])
def test_what_is_no_number_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(RecipeError, match=r"^WORLD_SIZE: '.+' is no whole number"):
        variables.WORLD_SIZE.number()
