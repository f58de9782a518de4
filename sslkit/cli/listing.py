"""The commands that say what is installed: `plugins`, `recipes`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson
from .output import print_json


def plugins_list(
    kind: Annotated[str | None, typer.Option(help="Only components of this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """Installed plugins and their components; broken ones with the reason."""
    from sslkit.host.plugins import load_plugins
    from sslkit.report.listing import plugin_rows, print_plugins

    rows = plugin_rows(load_plugins(), kind)
    print_json(rows) if as_json else print_plugins(rows)


def plugins_show(
    name: Annotated[str, typer.Argument(help="A component, such as nt_xent or loss:nt_xent.")],
    as_json: AsJson = False,
) -> None:
    """The fields of a component: type, default, meaning."""
    from sslkit.host.plugins import load_plugins
    from sslkit.report.listing import component_fields, print_components

    shown = component_fields(load_plugins().registry, name)
    print_json(shown) if as_json else print_components(shown)


def recipes_list(as_json: AsJson = False) -> None:
    """The recipes inside the installed packages."""
    from sslkit.host.recipe_files import shipped_recipes
    from sslkit.report.listing import print_recipes, recipe_rows

    rows = recipe_rows(shipped_recipes())
    print_json(rows) if as_json else print_recipes(rows)


def recipes_copy(
    name: Annotated[str, typer.Argument(help="As in `sslkit recipes list`.")],
    target: Annotated[Path | None, typer.Argument(help="File or folder; default: here.")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from sslkit.host.recipe_files import copy_recipe

    print(copy_recipe(name, target or Path()))


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
