"""`torch-export`: the graph of `torch.export`, for any number of images, in one .pt2 file.

`torch.export.load` unpickles what an archive says is pickled, and evaluates expressions of shapes
that it finds there: a .pt2 of unknown origin is code. Here only the archive that was just written
is loaded, after it was seen that nothing in it is pickled but plain tensors.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from sslkit.errors import ExportError, failure_of
from sslkit.experiment.networks import measured_dtype

from .preprocessing import input_name, input_words
from .round_trip import Embed
from .source import ExportSource

FILE = "encoder.pt2"
MAX_BATCH = 1 << 20
"""Images at a time that the graph is for."""


def write(source: ExportSource, folder: Path) -> None:
    """Traces the encoder and saves the graph with its weights."""
    archive = io.BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(traced(source), archive)
    (folder / FILE).write_bytes(archive.getbuffer())


def traced(source: ExportSource) -> torch.export.ExportedProgram:
    """The graph of the encoder. Raises ExportError where it cannot be traced."""
    images = example(source)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own future
            return torch.export.export(source.encoder, (images,), dynamic_shapes=dynamic_shapes())
    except Exception as error:  # whatever torch raises about the code of a network
        raise ExportError(_untraceable(source, "torch.export", error)) from error


def example(source: ExportSource) -> torch.Tensor:
    """Images of the right shape, (3, C, S, S), or samples (3, *shape)."""
    return torch.zeros(3, *source.shape, dtype=measured_dtype(source.sample))


def dynamic_shapes() -> tuple[dict[int, Any], ...]:
    """Says that the number of images is free."""
    return ({0: Dim("batch", min=1, max=MAX_BATCH)},)


def _untraceable(source: ExportSource, what: str, error: Exception) -> str:
    return (
        f"{source.path}: {what} cannot trace the backbone '{source.backbone['name']}' of "
        f"{source.distribution}: {failure_of(error)}"
    )


def load(folder: Path) -> tuple[Embed, ...]:
    """The graph, as a function. Raises ExportError where loading it would unpickle."""
    pickled = list(_pickled(folder / FILE))
    if pickled:
        raise ExportError(
            f"{pickled[0]} in {FILE} could only be loaded by unpickling; "
            "give the backbone plain tensors as parameters and buffers"
        )
    module = torch.export.load(folder / FILE).module()
    return (module,)


def _pickled(path: Path) -> Iterator[str]:
    """The entries of an archive that loading would unpickle as objects."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/sample_inputs/" in name:
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except (pickle.UnpicklingError, RuntimeError, EOFError):
                    yield name
            elif name.endswith("_config.json"):
                config: dict[str, Any] = json.loads(archive.read(name))["config"]
                yield from (key for key, entry in config.items() if entry.get("use_pickle", True))


def usage(source: ExportSource) -> str:
    """How to use it, for the model card."""
    name = input_name(source)
    return f"""\
import torch

encoder = torch.export.load("{FILE}").module()
features = encoder({name})  # {name}: {input_words(source)}"""


def shape(source: ExportSource) -> str:
    """Channels and sides of an input."""
    return ", ".join(map(str, source.shape))
