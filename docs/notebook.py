"""Makes the notebook of a page: its blocks marked `<!-- cell -->` are cells, its text is text.

    python docs/notebook.py            # executes it; writes notebooks/ and images/notebook/

The page is what is edited and reviewed; the notebook, and the pictures that the page shows, are
written from it. Needs nbclient and ipykernel (the `docs` group).
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "tutorial" / "notebook.md"
NOTEBOOK = HERE / "notebooks" / "look_inside.ipynb"
PICTURES = HERE / "images" / "notebook"

_CELL = re.compile(r"^<!-- cell -->\n```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\(\.\./images/notebook/([\w.-]+)\)\n?")
_OWN_FILE = re.compile(r"^This page is a notebook.*?\n\n", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")


def cells(page: str) -> list[dict[str, Any]]:
    """The cells of a page, not executed."""
    return [
        {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text,
            **({"execution_count": None, "outputs": []} if kind == "code" else {}),
        }
        for number, (kind, text) in enumerate(_parts(page))
    ]


def _parts(page: str) -> Iterator[tuple[str, str]]:
    for number, part in enumerate(_CELL.split(page)):
        text = part if number % 2 else _LINK.sub(r"\1", _OWN_FILE.sub("", _PICTURE.sub("", part)))
        if text.strip():
            yield ("code" if number % 2 else "markdown"), text.strip()


def picture_names(page: str) -> list[str]:
    """The pictures that a page shows, in order."""
    return _PICTURE.findall(page)


def pictures(notebook: dict[str, Any]) -> list[bytes]:
    """The pictures among the outputs of a notebook, in order, as PNG."""
    return [
        base64.b64decode(output["data"]["image/png"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


def unexecuted(page: str) -> dict[str, Any]:
    """The notebook of a page."""
    return {
        "cells": cells(page),
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def execute(notebook: dict[str, Any], folder: Path, timeout_s: int = 600) -> dict[str, Any]:
    """The notebook with its outputs, executed in a folder. Raises CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(notebook)
    options = {"record_timing": False, "coalesce_streams": True, "kernel_name": "python3"}
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(node, timeout=timeout_s, resources=place, **options).execute()
    found: dict[str, Any] = json.loads(nbformat.writes(node))
    found["metadata"] = notebook["metadata"]  # without the version of this Python
    for cell in found["cells"]:
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = _without_warnings("".join(output["text"]))
    return found


def _without_warnings(text: str) -> str:
    """What a cell printed, without warnings of other packages, which name files of this machine."""
    return re.sub(r"^\S+\.py:\d+: \w*Warning: .*\n(?:  .*\n)?", "", text, flags=re.MULTILINE)


def main() -> None:
    """Writes the notebook and its pictures."""
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(unexecuted(page), Path(folder))
    NOTEBOOK.parent.mkdir(exist_ok=True)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(picture_names(page), pictures(notebook), strict=True):
        (PICTURES / name).write_bytes(picture)


if __name__ == "__main__":
    main()
