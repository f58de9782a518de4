"""`sslkit plugins list` and `sslkit plugins show`."""

from __future__ import annotations

from typing import Annotated

import typer

from .completion import complete_component, complete_kind
from .options import AsJson
from .output import print_json


def plugins_list(
    kind: Annotated[
        str | None, typer.Option(help="Only components of this kind.", autocompletion=complete_kind)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Installed plugins and their components; broken ones with the reason."""
    from sslkit.host.plugins import load_plugins
    from sslkit.report.listing import plugin_rows, print_plugins

    rows = plugin_rows(load_plugins(), kind)
    print_json(rows) if as_json else print_plugins(rows)


def plugins_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A component, such as nt_xent or loss:nt_xent.", autocompletion=complete_component
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """The fields of a component: type, default, meaning."""
    from sslkit.host.plugins import load_plugins
    from sslkit.report.listing import component_fields, print_components

    shown = component_fields(load_plugins().registry, name)
    print_json(shown) if as_json else print_components(shown)
