"""What a timm model starts from: whether its name and its weights can be had, and these weights."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from sslkit.builtin.timm_source import HUB, LOCAL, is_elsewhere, read_saved_model, saved_weights
from sslkit.errors import CheckpointError
from sslkit.nn.image import Interpolation
from sslkit.nn.weights import FittingWeights, fit_weights, read_weights


def model_problem(name: str, *, pretrained: bool) -> str | None:
    """Why timm has no such model, with what to write; None where it has."""
    import timm

    if is_elsewhere(name):
        return _elsewhere_problem(name, pretrained=pretrained)
    source, colon, rest = name.partition(":")
    if source == "hf_hub":
        return f"{name}: write {HUB}{rest}"
    if not colon and "/" in name:
        plain = name.removeprefix("timm/")
        also = f", or {plain} for the model of timm itself" if timm.is_model(plain) else ""
        return f"{name!r} is no name of timm's: write {HUB}{name} or {LOCAL}{name}{also}"
    if timm.is_model(name):
        return None
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f", did you mean {' or '.join(close)}?" if close else "; see timm.list_models()"
    return f"timm has no model {name!r}{hint}"


def _elsewhere_problem(name: str, *, pretrained: bool) -> str | None:
    try:
        saved = read_saved_model(name)
    except CheckpointError as error:
        return str(error)
    if pretrained:
        return None
    return (
        f"{name} is a model with its weights: set pretrained: true, or, to start from random "
        f"weights, model: {saved.architecture}"
    )


def has_weights(name: str) -> bool:
    """Whether a model can be had with weights."""
    import timm

    return is_elsewhere(name) or bool(timm.is_model_pretrained(name))


def read_starting_weights(model: nn.Module, config: Any) -> FittingWeights | None:
    """Weights of a file that fit the model; None where the recipe names no file. timm's own
    converter is tried where they do not fit (it resamples position embeddings and renames the
    layers of original releases). Raises CheckpointError."""
    path: Path | None = config.weights
    if path is None and config.pretrained and is_elsewhere(config.model):
        path = saved_weights(config.model)
    if path is None:
        return None
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    tensors = read_weights(path)
    try:
        return fit_weights(
            model,
            tensors,
            config.weights_prefix,
            None if convert is None else lambda found: convert(found, model),
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}; check model, stem, patch_size and the channels of the data"
        ) from error


def trained_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the pixels that the published weights expect, if known."""
    import timm

    if is_elsewhere(name):
        return read_saved_model(name).statistics
    known = timm.get_pretrained_cfg(name)
    return None if known is None else (tuple(known.mean), tuple(known.std))


def trained_size(name: str) -> int | None:
    """Side of the images that the published weights were trained on, if known."""
    import timm

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return None if known is None else int(known.input_size[-1])


def published_fields(name: str) -> Mapping[str, Any] | None:
    """The fields of a backbone that is this model with its published weights, and the normalisation
    and interpolation that it was trained with; None where timm has no such model."""
    import timm

    if is_elsewhere(name):
        return {"model": name, "pretrained": True}
    if not timm.is_model(name):
        return None
    fields: dict[str, Any] = {"model": name, "pretrained": True}
    if (known := timm.get_pretrained_cfg(name)) is not None:
        fields["normalize"] = {"mean": list(known.mean), "std": list(known.std)}
        if known.interpolation in get_args(Interpolation):
            fields["interpolation"] = known.interpolation
    return fields
