"""timm's names that lead to a model and its weights elsewhere: `local-dir:FOLDER` and `hf-hub:ID`.

Of both the same is read: `config.json`, which says what the model is, and the weights beside it, by
the reader of all weights, which runs nothing. timm's own loading leaves layers random that the file
does not have, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.errors import CheckpointError, message_of
from sslkit.nn.weights import ENCODER_FILE, TIMM_FILE

LOCAL, HUB = "local-dir:", "hf-hub:"
_CONFIG = "config.json"
_WEIGHTS = (TIMM_FILE, "pytorch_model.bin", ENCODER_FILE)
_MAX_CONFIG = 1 << 20
_LEFT_OUT = frozenset(
    {"num_classes", "in_chans", "img_size", "pretrained", "pretrained_cfg", "checkpoint_path"}
    | {"pretrained_cfg_overlay", "cache_dir", "features_only", "scriptable", "exportable"}
)
"""Arguments of a saved model that follow from the recipe and the data, or that lead elsewhere."""


@dataclass(frozen=True)
class SavedModel:
    """What a folder or a repository of the Hub says of its model."""

    architecture: str
    """Name of the model in timm."""
    arguments: Mapping[str, bool | int | float | str]
    """Arguments of `timm.create_model`."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and standard deviation by which its images were normalised."""


def is_elsewhere(model: str) -> bool:
    """Whether the name leads to a folder or to the Hub."""
    return model.startswith((LOCAL, HUB))


def read_saved_model(model: str) -> SavedModel:
    """What the model is, without its weights. Raises CheckpointError."""
    import timm

    file = _file(model, (_CONFIG,))
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise ValueError("more than 1 MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
        architecture, arguments = content["architecture"], content.get("model_args") or {}
        known = content.get("pretrained_cfg") or content
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise ValueError(f"its architecture is {str(architecture)[:80]!r}, no model of timm")
        arguments = {name: arguments[name] for name in arguments if name not in _LEFT_OUT}
        for name, value in arguments.items():
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError(f"its model_args.{name} is a {type(value).__name__}, not a value")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{model}: {_CONFIG} is not that of a model that timm saved: {reason[:200]}"
        ) from error
    kept = {name: value for name, value in arguments.items() if value is not None}
    return SavedModel(architecture, kept, _statistics(known))


def saved_weights(model: str) -> Path:
    """The weight file of the model. Raises CheckpointError."""
    return _file(model, _WEIGHTS)


def _statistics(known: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    found = []
    for key in ("mean", "std"):
        values = known.get(key) if isinstance(known, dict) else None
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            return None
        found.append(tuple(map(float, values)))
    return found[0], found[1]


def _file(model: str, names: tuple[str, ...]) -> Path:
    """The first of these files that is there."""
    if model.startswith(LOCAL):
        return _local_file(Path(model.removeprefix(LOCAL)).expanduser(), names)
    return _hub_file(model.removeprefix(HUB), names)


def _local_file(folder: Path, names: tuple[str, ...]) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{LOCAL}{folder}: is no folder")
    for name in names:
        file = folder / name
        if file.is_file():
            if not file.resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(
                    f"{file}: is a link out of its folder; put the file itself there"
                )
            return file
    raise CheckpointError(f"{LOCAL}{folder}: holds no {' or '.join(names)}")


def _hub_file(repository: str, names: tuple[str, ...]) -> Path:
    """Downloads a file, or finds it in the cache of `huggingface_hub`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = repository.partition("@")
    for file in names:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError) and file == names[-1]:  # not in the cache
                raise CheckpointError(_no_hub(repository, error)) from error
        except Exception as error:  # of the network, of the name, of a login that is missing
            raise CheckpointError(_no_hub(repository, error)) from error
    raise CheckpointError(f"{HUB}{repository}: holds no {' or '.join(names)}")


def _no_hub(repository: str, error: Exception) -> str:
    return (
        f"{HUB}{repository}: cannot be had: {message_of(error)}; without internet, copy the "
        f"folder here and write {LOCAL}FOLDER"
    )
