"""The pages build without warnings, their commands work, their links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_states import ONE_THREAD, States
from pages import DOCS, REPOSITORY, Block, blocks, name, pages

EXECUTED = [
    page
    for page in pages()
    if any({"run", "output of"} & block.marks.keys() for block in blocks(page))
]
PICTURE = DOCS / "images" / "quickstart.png"

_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_DEVELOPER_PATH = re.compile(r"(?<![\w.}~-])(?:/(?:home|Users|work|root)/\w+|[A-Z]:\\\\?Users)")


def test_the_links_of_the_pages_lead_to_files() -> None:
    """To files that are there without a build: the pages are read as source too."""
    for page in pages():
        for target in _LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in target and not target.endswith(PICTURE.name):
                assert (page.parent / target).exists(), f"{name(page)}: {target}"


def test_the_readme_has_its_picture() -> None:
    assert PICTURE.relative_to(REPOSITORY).as_posix() in (REPOSITORY / "README.md").read_text()
    if not PICTURE.exists():
        pytest.skip("docs/images/quickstart.png comes from a real run of the quickstart")
    assert PICTURE.read_bytes().startswith(b"\x89PNG")


MODULES = [b for p in pages() for b in blocks(p) if b.marks.get("file", "").endswith(".py")]


def bound_names(tree: ast.Module) -> set[str]:
    """What a module imports, defines or assigns at its top."""
    found = set(dir(builtins))
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        else:
            found |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("block", MODULES, ids=str)
def test_the_modules_of_a_page_import_what_they_annotate(block: Block) -> None:
    """Annotations are not evaluated when a page is executed, and a type checker would object."""
    tree = ast.parse(block.text)
    known = bound_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            known |= {each.name for each in node.body if isinstance(each, ast.ClassDef)}
    given = [n.annotation for n in ast.walk(tree) if isinstance(n, ast.arg | ast.AnnAssign)]
    given += [n.returns for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    names = {n.id for each in given if each for n in ast.walk(each) if isinstance(n, ast.Name)}
    assert names - known == set()


def text_files() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for entry in listed.stdout.split("\0"):
        path = REPOSITORY / entry
        if entry and path.is_file() and path.suffix not in (".npy", ".png", ".parquet", ".pt"):
            yield path


def test_nothing_names_a_folder_of_a_developer() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if _DEVELOPER_PATH.search(line)
    ]
    assert found == []


def test_no_file_holds_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert [path for path in text_files() if marks.search(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("see {root}home/ada/code", True),
        ('"{root}Users/ada/code"', True),
        ("C:{back}Users{back}ada", True),
        ("docs{root}home/index.md", False),
        ("https://example.org{root}home/ada", False),
        ("~{root}work/x", False),
    ],
)
def test_the_folder_of_a_developer_is_recognised(line: str, is_one: bool) -> None:
    # Put together here, so that this file names no such folder.
    assert bool(_DEVELOPER_PATH.search(line.format(root="/", back="\\"))) is is_one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert "NT-Xent" in built["python.html"]
    for page, html in built.items():  # what themes and extensions report inside a page only
        assert "system-message" not in html, page
        assert "<p>ERROR: " not in html, page


def is_missing(package: str | None) -> bool:
    return package is not None and importlib.util.find_spec(package) is None


def write_file(block: Block, folder: Path) -> None:
    """What the marks `file` and `append` say; holds a block to `part of`."""
    for mark, mode in (("file", "w"), ("append", "a")):
        if mark in block.marks:
            path = folder / block.marks[mark]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8") as file:
                file.write("\n\n" * (mode == "a") + block.text)
    if "part of" in block.marks:
        text = (folder / block.marks["part of"]).read_text(encoding="utf-8")
        assert block.text in text, str(block)


class Session:
    """A page as its reader follows it, in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str], states: States) -> None:
        self._folder = folder
        path = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
        self._environment = {**environment, **ONE_THREAD, "PATH": path}
        self._states = states
        self._printed = ""

    def follow(self, block: Block) -> None:
        """Does what the marks of a block say."""
        write_file(block, self._folder)
        if "given" in block.marks:
            self._states.give(block.marks["given"], self._folder)
        if "run" in block.marks:
            text = (
                f"{block.text.rstrip()} {block.marks['and']}"
                if "and" in block.marks
                else block.text
            )
            done = self._execute(block.language, text)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr, f"{block}\n{done.stderr}"
            self._printed = done.stdout + done.stderr
        if "output of" in block.marks:
            done = self._execute("bash", block.marks["output of"])
            self._printed = done.stdout + done.stderr
        if {"output", "output of"} & block.marks.keys():
            assert missing_lines(block.text, self._printed) == [], f"{block}\n{self._printed}"

    def _execute(self, language: str, text: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(
            shell if language == "bash" else ["python", "-c", text],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


_NUMBER = re.compile(r"\d[\d.,:]*(?:e[+-]?\d+)?")


def missing_lines(shown: str, printed: str) -> list[str]:
    """What of a text on a page was not printed, up to spaces, line breaks and numbers. `...`
    stands for anything."""
    wanted, found = (_NUMBER.sub("#", " ".join(text.split())) for text in (shown, printed))
    if wanted in found:
        return []
    parts = (part.strip() for line in shown.splitlines() for part in line.split("..."))
    return [part for part in parts if _NUMBER.sub("#", " ".join(part.split())) not in found]


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("step 11/22  loss 4.91\nstep 3/3 loss 1", []),
        ("error: the word is long and is broken\nhere", []),
        ("error: ... is broken here\nstep ...", []),
        ("step 11/22  lose 4.91\nerror: the word", ["step 11/22  lose 4.91"]),
        ("step ... long division", ["long division"]),
    ],
)
def test_what_a_page_shows_is_looked_for_in_what_was_printed(
    shown: str, missing: list[str]
) -> None:
    printed = "step 1/2 loss 0.05\nerror: the word is long and is broken here\n"
    assert missing_lines(shown, printed) == missing


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform == "win32", reason="the pages show a POSIX shell")
@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_the_commands_of_a_page_work(
    page: Path, tmp_path: Path, environment: dict[str, str], states: States
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    session = Session(folder, environment, states)
    left_out = [block for block in blocks(page) if is_missing(block.marks.get("needs"))]
    for block in blocks(page):
        if block not in left_out:
            session.follow(block)
    if left_out:
        needed = ", ".join(f"{block} needs {block.marks['needs']}" for block in left_out)
        pytest.skip(f"all else on the page works; not executed: {needed}")
