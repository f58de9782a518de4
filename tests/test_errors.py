"""Messages that a terminal can show, whatever names and files hold."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from sslkit import errors
from sslkit.cli import main
from sslkit.engine.display import Display
from sslkit.errors import (
    DataError,
    RecipeError,
    SSLKitError,
    failure_of,
    first_line_of,
    message_of,
    printable,
)
from sslkit.host.recipe_files import read_recipe_text

KINDS = {
    "SSLKitError": 1,
    "RankError": 1,
    "RecipeError": 2,
    "PluginError": 2,
    "CheckpointError": 2,
    "RunFolderError": 2,
    "DataError": 1,
    "TrainingError": 1,
    "TrackingError": 1,
    "ExportError": 1,
}
"""Every kind of error and its exit code. Scripts rely on them: a change is a new interface."""

HARMFUL = "a\x1b[31mred\x07\r\u202egnp\x85\u2028z\udcff"
SHOWN = r"a\x1b[31mred\x07\r\u202egnp\x85\u2028z\udcff"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "message", "first", "failure"),
    [
        (ValueError("one\n  two"), "one two", "one", "ValueError: one two"),
        (ValueError(), "ValueError", "ValueError", "ValueError"),
        (ValueError("\n\nlate\nmore"), "late more", "late", "ValueError: late more"),
        (OSError("at http://me:secret@host/x"), *["at http://***@host/x"] * 2,
         "OSError: at http://***@host/x"),
        (ValueError("x" * 300), *["x" * 197 + "..."] * 2, "ValueError: " + "x" * 185 + "..."),
        (Unprintable(), *["Unprintable"] * 3),
    ],
)  # fmt: skip
def test_exceptions_of_others_take_one_line(
    error: Exception, message: str, first: str, failure: str
) -> None:
    assert message_of(error) == message
    assert first_line_of(error) == first
    assert failure_of(error) == failure


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable(HARMFUL) == SHOWN
    assert printable("Zeile 1\nStraße é 名前 100 %") == "Zeile 1\nStraße é 名前 100 %"
    assert str(DataError(HARMFUL)) == SHOWN
    error = RecipeError(HARMFUL, "x")
    assert error.problems == (SHOWN, "x")
    assert str(error) == f"{SHOWN}\nx"


def test_lines_of_a_run_show_them_too() -> None:
    stream = io.StringIO()
    Display(stream).message(f"warning: {HARMFUL}")
    assert stream.getvalue() == f"warning: {SHOWN}\n"


def test_the_command_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(tmp_path / "no\x1b[2Jsuch.yaml")])
    shown = capsys.readouterr().err
    assert r"no\x1b[2Jsuch.yaml: no such file" in shown
    assert "\x1b" not in shown


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    """Reading it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"pipe\.yaml: is no regular file; expected a recipe"):
        read_recipe_text(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match=r"zero\.yaml: is no regular file"):
        read_recipe_text(tmp_path / "zero.yaml")


def test_what_the_shell_hands_over_is_read() -> None:
    """`sslkit validate <(...)` names a pipe below /dev."""
    reader, writer = os.pipe()
    os.write(writer, b"name: x")
    os.close(writer)
    try:
        assert read_recipe_text(Path(f"/dev/fd/{reader}")) == "name: x"
    finally:
        os.close(reader)


def test_a_line_of_an_error_ends_after_a_screen() -> None:
    """A name in a hostile file can be as long as the file."""
    message = str(DataError("x" * 5000 + "\nshort"))
    assert [len(line) < 1600 for line in message.splitlines()] == [True, True]
    assert message.endswith("\nshort")
    assert "(5,000 characters)" in message


def test_the_kinds_of_errors_are_these() -> None:
    found = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert found == KINDS
    assert all(issubclass(getattr(errors, name), SSLKitError) for name in KINDS)


@pytest.mark.parametrize(("kind", "code"), KINDS.items())
def test_a_command_ends_with_the_code_of_the_error_and_one_line(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise getattr(errors, kind)("a.yaml:1: what was wrong, what is valid")

    monkeypatch.setattr("sslkit.host.recipe_files.shipped_recipes", fail)
    monkeypatch.setattr("os._exit", sys.exit)  # by which one of several processes ends
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "list"])
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: a.yaml:1: what was wrong, what is valid\n"


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(28, "No space left on device")])
def test_what_nobody_expected_ends_with_1_and_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sslkit.host.recipe_files.shipped_recipes", fail)
    with pytest.raises(SystemExit, match="1"):
        main(["recipes", "list"])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_page_lists_every_kind_with_its_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "errors.md").read_text("utf-8")
    listed = {
        line.split("`")[1]: int(line.split("|")[2])
        for line in page.splitlines()
        if line.startswith("| `") and "Error" in line
    }
    assert listed == KINDS
