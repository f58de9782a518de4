"""Reading network weights from files, without ever running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from sslkit.errors import CheckpointError
from sslkit.files import reason

from . import safetensors_file
from .torch_file import load_torch_file

_WRAPPERS = ("state_dict", "model")
_COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors file, a torch file (.pth, .pt, .bin; read with
    `weights_only`), an earlier run folder (its `encoder.safetensors`) or a folder of
    `sslkit export --format timm` (its `model.safetensors`), on the CPU.

    Unwraps `{"state_dict": ...}` and `{"model": ...}` and strips DDP's `module.` prefix.
    Raises CheckpointError.
    """
    file = weight_file(path)
    if not file.is_file():
        hint = " (a run folder holds it once its run has finished)" if path.is_dir() else ""
        raise CheckpointError(f"{file}: no such file{hint}")
    try:
        if file.suffix == ".safetensors":
            return safetensors_file.load(file)
        content = load_torch_file(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable weight file: {reason(error)}") from error
    return _state_dict(content, file)


def weight_file(path: Path) -> Path:
    """The file itself, or the one in the folder of a run or of an export for timm."""
    if not path.is_dir():
        return path
    exported = path / "model.safetensors"
    return exported if exported.is_file() else path / "encoder.safetensors"


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
