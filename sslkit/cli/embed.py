"""`sslkit embed`: features to a Parquet file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sslkit.errors import RecipeError
from sslkit.report.console import print_line

from .completion import complete_recipe, complete_run, one_of_words
from .options import DEVICES, SPLITS, AsJson, Overrides, one_of
from .output import print_json

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FEATURES",
        help="A run folder, a checkpoint or an encoder.safetensors; with --nearest a file that "
        "this command wrote, too.",
        autocompletion=complete_run,
    ),
]
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE|DATA",
        help="A recipe, whose data is taken, or a data block: '{name: digits}'. Default: the "
        "data of the run.",
        autocompletion=complete_recipe,
    ),
]
Out = Annotated[Path | None, typer.Option("-O", "--out", help="The Parquet file to write.")]
Split = Annotated[
    str,
    typer.Option(help="The images to take: train or test.", autocompletion=one_of_words(*SPLITS)),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or mps.", autocompletion=one_of_words(*DEVICES))
]
Maps = Annotated[
    str, typer.Option("--map", metavar="pca,tsne,umap|none", help="Draw maps beside the file too.")
]
Nearest = Annotated[
    str | None,
    typer.Option(metavar="IMAGE", help="Show the nearest images of this one: a path, or an index."),
]
Neighbours = Annotated[int, typer.Option(min=1, max=1000, help="With --nearest: how many to show.")]


def embed(
    run: Run,
    source: Source = None,
    out: Out = None,
    split: Split = "train",
    device: Device = "auto",
    maps: Maps = "none",
    nearest: Nearest = None,
    neighbours: Neighbours = 10,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the features of a data source, by the encoder of a run, to a Parquet file."""
    from sslkit.report.nearest import print_nearest
    from sslkit.report.projection import parse_methods
    from sslkit.workflows.embed import draw_maps, embed_source
    from sslkit.workflows.nearest import find_nearest

    if nearest is not None and out is None and Path(run).suffix == ".parquet":
        rows = find_nearest(Path(run), nearest, neighbours)
        print_json([asdict(row) for row in rows]) if as_json else print_nearest(rows)
        return
    if out is None:
        raise RecipeError("name the file to write with --out")
    methods = parse_methods(maps)
    written = embed_source(
        run, out, source, override or [], split=one_of(split, SPLITS, "--split"),
        device=one_of(device, DEVICES, "--device"),
    )  # fmt: skip
    drawn = draw_maps(written.path, methods) if methods else []
    rows = find_nearest(written.path, nearest, neighbours) if nearest is not None else []
    if as_json:
        print_json(
            {
                **written.to_json(),
                "maps": [str(path) for path in drawn],
                "nearest": [asdict(row) for row in rows],
            }
        )
        return
    labels = "with labels" if written.labels else "without labels"
    left_out = f"; {written.left_out} unreadable images left out" if written.left_out else ""
    print_line(
        f"{written.path}: {written.rows:,} features of width {written.width}, {labels}{left_out}"
    )
    for path in drawn:
        print_line(str(path))
    if rows:
        print_nearest(rows)
