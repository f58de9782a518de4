"""`sslkit export`: the backbone for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslkit.report.console import print_line

from .completion import complete_run, one_of_words
from .options import EXPORT_FORMATS, AsJson, one_of
from .output import print_json


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, an encoder.safetensors, or the folder of an eval.",
            autocompletion=complete_run,
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="timm|onnx|torch-export",
            help="What to write.",
            autocompletion=one_of_words(*EXPORT_FORMATS),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-O", "--out", help="The new folder; default: exports/<run>-<format>."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the encoder of a run for timm, ONNX or torch.export; kept only if it is equal.

    What was written is loaded again and embeds images of the run's data: its features must be
    those of the encoder to 1e-5 of their scale. With the preprocessing and a model card."""
    from sslkit.workflows.export.export import export_encoder

    made = export_encoder(run, one_of(format, EXPORT_FORMATS, "--format"), out)
    if as_json:
        print_json(made.to_json())
        return
    print_line(
        f"{made.folder}: the features of the encoder {made.difference.words()}, on {made.images}"
    )
