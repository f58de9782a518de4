"""Reading network weights from files, without ever running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.errors import CheckpointError

_WRAPPERS = ("state_dict", "model")
_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, a torch file (.pth, .pt, .bin; read with
    `weights_only`), or an earlier run folder (its `encoder.safetensors`), on the CPU.

    Unwraps `{"state_dict": ...}` and `{"model": ...}` and strips DDP's `module.` prefix.
    Raises CheckpointError.
    """
    file = path / "encoder.safetensors" if path.is_dir() else path
    if not file.is_file():
        hint = " (a run folder holds it once its run has finished)" if path.is_dir() else ""
        raise CheckpointError(f"{file}: no such file{hint}")
    try:
        if file.suffix == ".safetensors":
            weights: dict[str, Tensor] = load_file(file)
            return weights
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: not a readable weight file: {first_line}") from error
    return _state_dict(content, file)


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{file}: expected a mapping of names to tensors, or one under 'state_dict' or 'model'"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def misfits(model: nn.Module, weights: Mapping[str, Tensor], ignore: tuple[str, ...]) -> list[str]:
    """Why these weights do not fit the model, one phrase per tensor; empty where they fit.

    ignore: prefixes of names that only the file may have, such as the classifier's.
    """
    wanted = {n: v for n, v in model.state_dict().items() if not n.endswith(_COUNTER)}
    found = {n: v for n, v in weights.items() if not n.endswith(_COUNTER)}
    missing = [f"{name} is missing" for name in wanted if name not in found]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    unknown = [
        f"{name} is not in the model"
        for name in found
        if name not in wanted and not name.startswith(ignore)
    ]
    return shapes + missing + unknown
