"""`timm`: a folder as timm and the Hugging Face hub have it: weights and config.json.

`timm.create_model(name, checkpoint_path=..., num_classes=0)` loads the weights alone,
`timm.create_model("local-dir:FOLDER", pretrained=True)` the folder, preprocessing included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslkit.api import NoTimmModelError
from sslkit.errors import ExportError
from sslkit.nn.weights import TIMM_FILE

from .round_trip import Embed
from .source import ExportSource
from .torch_format import shape

FILE = TIMM_FILE
CONFIG = "config.json"
_KEPT_OF_TIMM = ("classifier", "first_conv", "pool_size", "fixed_input_size")
"""What timm itself knows of an architecture and needs to put a classifier on it."""


def write(source: ExportSource, folder: Path) -> None:
    """Writes the weights under timm's names, and config.json. Raises ExportError where timm has
    no such model."""
    from safetensors.torch import save_file

    name, arguments, model = timm_model(source)
    state = source.encoder.export_state()
    weights = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_file(weights, folder / FILE, {"format": "pt"})
    text = json.dumps(_config(source, name, arguments, model), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def timm_model(source: ExportSource) -> tuple[str, dict[str, Any], nn.Module]:
    """Name and arguments of `timm.create_model` for the network, and the model that they make,
    without memory. Raises ExportError."""
    import timm

    try:
        found = source.encoder.timm_model()
    except NoTimmModelError as error:
        raise ExportError(
            f"--format timm: {error}; use --format onnx or --format torch-export"
        ) from error
    name, arguments = found.name, dict(found.arguments)
    with torch.device("meta"):
        try:
            model = timm.create_model(name, num_classes=0, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            del arguments["img_size"]  # it takes any size, as ResNets do
            model = timm.create_model(name, num_classes=0, **arguments)
    return model.pretrained_cfg["architecture"], arguments, model


def _config(
    source: ExportSource, name: str, arguments: Mapping[str, Any], model: nn.Module
) -> dict[str, Any]:
    preprocess, known = source.encoder.preprocess, getattr(model, "pretrained_cfg", {})
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": source.encoder.num_features,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            **{key: known[key] for key in _KEPT_OF_TIMM if known.get(key) is not None},
            "num_classes": 0,
            "input_size": [source.channels, preprocess.size, preprocess.size],
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.size / preprocess.resize,
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        },
    }


def load(folder: Path) -> tuple[Embed, ...]:
    """The model as timm makes it from the weights, and as it makes it from the folder."""
    import timm

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    from_weights = timm.create_model(
        config["architecture"],
        checkpoint_path=str(folder / FILE),
        num_classes=0,
        **config["model_args"],
    )
    from_folder = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    return from_weights.eval(), from_folder.eval()


def usage(source: ExportSource) -> str:
    """How to use it, for the model card."""
    name, arguments, _ = timm_model(source)
    further = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"""\
import timm

encoder = timm.create_model("{name}", checkpoint_path="{FILE}", num_classes=0{further}).eval()
# or, in the folder around this one: timm.create_model("local-dir:FOLDER", pretrained=True)
# images: (B, {shape(source)}) float32, normalised by mean and std of preprocess.json
features = encoder(images)"""
