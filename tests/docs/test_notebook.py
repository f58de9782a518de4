"""The notebook is that of its page, runs as it is, and has the pictures that the page shows."""

from __future__ import annotations

import ast
import json
import struct
from pathlib import Path
from typing import Any

import notebook as notebook_of_page
import pytest

PAGE = notebook_of_page.PAGE.read_text(encoding="utf-8")
NOTEBOOK: dict[str, Any] = json.loads(notebook_of_page.NOTEBOOK.read_text(encoding="utf-8"))
REMAKE = "make it again: python docs/notebook.py"


def sources(cells: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(kind, text) of each cell; a file has text as lines."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def code(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_that_of_its_page() -> None:
    assert sources(NOTEBOOK["cells"]) == sources(notebook_of_page.cells(PAGE)), REMAKE
    assert len(code(NOTEBOOK["cells"])) == PAGE.count("```python")


def test_it_was_executed_from_top_to_bottom_without_an_error() -> None:
    cells = code(NOTEBOOK["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert kinds.count("display_data") == 5
    assert "error" not in kinds


def test_the_page_shows_the_pictures_of_the_notebook() -> None:
    shown = [notebook_of_page.PICTURES / name for name in notebook_of_page.picture_names(PAGE)]
    assert [path.read_bytes() for path in shown] == notebook_of_page.pictures(NOTEBOOK), REMAKE
    assert {path.name for path in notebook_of_page.PICTURES.iterdir()} == {p.name for p in shown}
    for path in shown:  # wide enough to see, none of them empty
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 700, path
        assert height > 200, path
        assert path.stat().st_size > 20_000, path


def test_it_opens_where_sslkit_is_not_installed() -> None:
    """The first cell installs it, and needs nothing but Python."""
    first, *_ = code(NOTEBOOK["cells"])
    imported = {
        alias.name
        for node in ast.walk(ast.parse("".join(first["source"])))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"importlib.util", "subprocess", "sys"}
    assert '"install", "-q", "sslkit"' in "".join(first["source"])
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"


def test_its_text_names_no_file_beside_it() -> None:
    """It is read in Colab, where neither pages nor pictures are."""
    for kind, text in sources(NOTEBOOK["cells"]):
        if kind == "markdown":
            assert "](" not in text
            assert "{download}" not in text


def test_its_outputs_name_no_place_of_this_machine() -> None:
    said = [
        "".join(output["text"])
        for cell in code(NOTEBOOK["cells"])
        for output in cell["outputs"]
        if "text" in output
    ]
    assert any("step 88/88" in text for text in said)
    assert not any(word in text for text in said for word in ("site-packages", "/home", "/tmp"))


@pytest.mark.slow  # trains: about a minute of processor time
@pytest.mark.timeout(600)
def test_it_runs_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="the docs group is not installed")
    pytest.importorskip("ipykernel", reason="the docs group is not installed")
    done = notebook_of_page.execute(notebook_of_page.unexecuted(PAGE), tmp_path, timeout_s=500)
    assert len(notebook_of_page.pictures(done)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
