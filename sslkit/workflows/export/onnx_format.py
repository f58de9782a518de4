"""`onnx`: one graph for any number of images, checked with ONNX Runtime.

torch's exporter needs onnx and onnxscript; a file that was not run is not kept, so ONNX Runtime is
needed as well. All three are the extra `onnx`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sslkit.errors import ExportError, failure_of

from .preprocessing import OUTPUT, input_name, input_words
from .round_trip import Embed
from .source import ExportSource
from .torch_format import dynamic_shapes, example

FILE = "encoder.onnx"
MODULES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_FILE = 1_800_000_000
"""Bytes of weights up to which they are inside the file: protobuf ends at 2 GiB."""


def write(source: ExportSource, folder: Path) -> None:
    """Exports the graph. Weights beyond 1.8 GB go into `encoder.onnx.data` beside it."""
    weights = sum(value.nbytes for value in source.encoder.state_dict().values())
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                source.encoder,
                (example(source),),
                folder / FILE,
                dynamo=True,
                dynamic_shapes=dynamic_shapes(),
                input_names=[input_name(source)],
                output_names=[OUTPUT],
                external_data=weights > _LARGEST_FILE,
                verbose=False,
            )
    except OSError:  # a full disk says nothing about the network
        raise
    except Exception as error:  # whatever torch and onnxscript raise about the code of a network
        raise ExportError(
            f"{source.path}: torch.onnx cannot export the backbone '{source.backbone['name']}' of "
            f"{source.distribution}: {failure_of(error)}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and its advice about packages off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load(folder: Path) -> tuple[Embed, ...]:
    """The graph in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(folder / FILE), options, providers=["CPUExecutionProvider"]
    )

    def embed(images: Tensor) -> Tensor:
        (features,) = session.run([OUTPUT], {session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(features)

    return (embed,)


def usage(source: ExportSource) -> str:
    """How to use it, for the model card."""
    name = input_name(source)
    return f"""\
import onnxruntime

encoder = onnxruntime.InferenceSession("{FILE}")
# {name}: {input_words(source)}, a NumPy array
(features,) = encoder.run(["{OUTPUT}"], {{"{name}": {name}}})"""
