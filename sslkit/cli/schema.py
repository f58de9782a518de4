"""`sslkit schema`: the JSON Schema of recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError
from sslkit.report.console import print_line


def schema(
    out: Annotated[
        Path | None,
        typer.Option(
            "-O",
            "--out",
            help="Write to this file; to sslkit.schema.json in it, if it is a folder.",
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, installed plugins included, for editors.

    Recipes name it in their first line: give this command again after installing a plugin."""
    if out is None:
        print(_make_schema())
    elif out.is_dir():
        print_line(str(write_schema(out, again=True)))
    else:
        out.write_text(_make_schema() + "\n", encoding="utf-8")


def write_schema(folder: Path, *, again: bool = False) -> Path:
    """Writes the schema into a folder of recipes, in place of an older one; returns the file.
    again: make it also where it was made before for the same packages.

    Raises RecipeError where another file has its name."""
    from sslkit.host.recipe_files import SCHEMA_FILE
    from sslkit.host.schema_cache import schema_at_hand, title_of

    path = folder / SCHEMA_FILE
    known, is_current = schema_at_hand()
    text = json.dumps(known, indent=2) if known and is_current and not again else _make_schema()
    if path.exists() and title_of(path) != json.loads(text)["title"]:
        raise RecipeError(f"{path}: is no schema of sslkit and stays as it is; rename it")
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _make_schema() -> str:
    from sslkit.host.plugins import load_plugins
    from sslkit.host.schema_cache import keep_schema
    from sslkit.recipe import json_schema

    text = json.dumps(json_schema(load_plugins().registry), indent=2)
    keep_schema(text)
    return text
