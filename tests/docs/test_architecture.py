"""The page on the architecture against the source: floors, rooms, files, how many a run passes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, REPOSITORY

import sslkit

PAGE = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "sslkit"
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def structure(name: str) -> object:
    """A constant of tests/test_structure.py."""
    tree = ast.parse((REPOSITORY / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(ast.unparse(node.value).replace("ROOT", "''"))
    raise AssertionError(name)


def drawn() -> tuple[tuple[str, ...], ...]:
    """The floors of the drawing, from the top, with the marks of their rooms."""
    block = PAGE.partition("```text\n")[2].partition("```")[0]
    floors = block.partition("\n\n")[0].split("+" + "-" * 24 + "+")[1:-1]
    cells = [re.findall(r"^\| (.{23})\|", floor, re.MULTILINE) for floor in floors]
    return tuple(tuple(cell.strip() for cell in floor if cell.strip()) for floor in cells)


def test_the_drawing_is_the_house_that_the_imports_are_held_against() -> None:
    floors = tuple(tuple(cell.strip(" *") for cell in floor) for floor in drawn())
    assert floors == structure("LAYERS")


def test_the_drawing_marks_what_authors_may_import() -> None:
    marked = {cell.strip(" *") for floor in drawn() for cell in floor if cell.endswith("*")}
    assert marked == set(structure("AUTHORS_MAY_IMPORT")) - {"", "builtin"}  # type: ignore[call-overload]


def test_the_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`(?:sslkit/)?(\w+/[\w/]*\.py)`", PAGE))
    assert len(named) > 15
    assert [path for path in named if not (PACKAGE / path).is_file()] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_package_says_what_lives_there_and_what_does_not(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert text
    here, _, elsewhere = text.partition("\n\nNot here: ")
    assert len(here.split()) >= 4
    assert elsewhere.endswith(".")
    rooms = {name for floor in structure("LAYERS") for name in floor} | {"builtin"}  # type: ignore[attr-defined]
    for address in re.findall(r"`([a-z_]+(?:/[a-z_]+(?:\.py)?)?)`", elsewhere):
        assert address.partition("/")[0] in rooms, address
        if "/" in address:
            path = PACKAGE / address
            assert path.exists() or path.with_suffix(".py").exists(), address


COUNT = """
import json, sys
from pathlib import Path
import sslkit
from sslkit.engine.display import Silent
from sslkit.workflows.train import start

class FirstStep(BaseException): ...
seen = []
root = str(Path(sslkit.__file__).parent) + "/"

def note(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and code.co_name != "<module>":
        seen.append(code.co_filename.removeprefix(root))
        if code.co_name == "train_step":
            sys.setprofile(None)
            raise FirstStep

sys.setprofile(note)
try:
    start(sys.argv[1], display=Silent())
except FirstStep:
    print(json.dumps(seen))
"""
CONTRACTS = (
    "api/",
    "builtin/",
    "nn/",
    "errors",
    "files",
    "run_files",
    "randomness",
    "threads",
    "deprecation",
    "interfaces",
)


def listed() -> set[str]:
    """The files of the table, such as `experiment/build.py`."""
    table = PAGE.partition("| room | files, and what each adds before the first step |\n")[2]
    found = set()
    for row in table.partition("\n\n")[0].splitlines()[1:]:
        room, names = row.strip("| ").split(" | ", 1)
        folder = "" if room == "the floor below" else room.strip("`") + "/"
        found |= {f"{folder}{name}.py" for name in re.findall(r"`(\w+)`", names)}
    return found


@pytest.mark.slow  # a run under a tracer
def test_a_run_passes_the_files_that_the_page_lists(tiny: Path) -> None:
    """Files in which a function runs between the call of the workflow and the first step."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tiny)], capture_output=True, text=True, check=False,
        cwd=tiny.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = set(json.loads(done.stdout))
    machinery = {name for name in files if not name.startswith(CONTRACTS)}
    assert machinery == listed()
    assert len(machinery) == int(re.findall(r"(\d+) files of machinery", PAGE)[0])
    spine = re.findall(r"`sslkit/([\w/]+\.py)`", PAGE.partition("you read seven files")[2])[:7]
    passed = [name for name in spine if not name.startswith("cli/")]
    assert len(spine) == 7
    assert set(passed) <= files
    assert Path(sslkit.__file__).parent == PACKAGE
