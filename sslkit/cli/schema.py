"""`sslkit schema`: the JSON Schema of recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[Path | None, typer.Option("-O", "--out", help="Write to this file.")] = None,
) -> None:
    """Print the JSON Schema of recipes, installed plugins included, for editors."""
    from sslkit.host.plugins import load_plugins
    from sslkit.recipe import json_schema

    text = json.dumps(json_schema(load_plugins().registry), indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
