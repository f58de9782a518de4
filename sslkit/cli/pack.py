"""`sslkit pack`: a data source to one file that is mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError

from .completion import complete_recipe
from .options import AsJson, Overrides, required
from .output import print_json

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE|DATA",
        help="A recipe, whose data is packed, or a data block: '{name: digits}'.",
        autocompletion=complete_recipe,
    ),
]
Out = Annotated[Path | None, typer.Option("-O", "--out", help="The pack to write.")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Side of the square images to store, in pixels: the shorter side is resized to it, "
        "then the centre is cut out. Default: images as they are, if all have one size.",
    ),
]
Interpolation = Annotated[
    str, typer.Option(help="Of the resize, which is antialiased: bilinear or bicubic.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that decode; no effect on the file. Default: one a core."),
]
Verify = Annotated[
    Path | None,
    typer.Option(metavar="PACK", help="Check every pixel of a pack, and write nothing."),
]


def pack(
    source: Source = None,
    out: Out = None,
    size: Size = None,
    interpolation: Interpolation = "bilinear",
    threads: Threads = None,
    verify: Verify = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Decode a data source once, into one file that the source `pack` maps into memory.

    Both splits go into the file. A command that was stopped goes on where it was when it is given
    again."""
    from sslkit.report.pack import print_pack
    from sslkit.workflows.pack import pack_source, verify_pack

    if verify is not None:
        found = verify_pack(verify, threads)
    elif out is None:
        raise RecipeError("name the file to write with --out")
    else:
        found = pack_source(
            required(source), out, override or [], size, interpolation, threads=threads
        )
    print_json(found.to_json()) if as_json else print_pack(found.pack)
