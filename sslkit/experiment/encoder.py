"""The encoder of a run: written when it is finished, loaded for use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sslkit.api import Backbone, RunFacts, SampleSpec, resolve_component
from sslkit.errors import CheckpointError, SSLKitError
from sslkit.files import reason
from sslkit.nn import safetensors_file
from sslkit.nn.network_size import no_larger_than
from sslkit.recipe import recipe_hash
from sslkit.runs.encoder_file import (
    EncoderDescription,
    find_encoder,
    read_description,
    write_encoder,
)
from sslkit.runs.environment_file import read_environment
from sslkit.runs.folder import run_folder_of

from .build import Experiment
from .networks import build_backbone, described_preparation, input_shape, without_weights
from .restore import load_measured_method

_SHOWN, _LONGEST = 2, 250
"""Problems of a description that are said, and characters of one."""


def save_encoder(experiment: Experiment) -> Path:
    """Writes the encoder of a run: its weights under the names that other tools expect, and what it
    takes to build it again. Raises TrainingError."""
    encoder, slot = experiment.method.encoder, experiment.recipe.backbone
    config = slot.cls.without_weights(slot.config)
    described = EncoderDescription(
        backbone={"name": slot.name, **config.model_dump(mode="json")},
        preprocess=described_preparation(encoder) or {},
        recipe_hash=recipe_hash(experiment.recipe),
        **_described_input(encoder, experiment.facts),
    )
    weights = {
        name: value.detach().cpu().contiguous() for name, value in encoder.export_state().items()
    }
    return write_encoder(experiment.folder, weights, described)


def _described_input(encoder: Backbone, facts: RunFacts) -> dict[str, Any]:
    shape = input_shape(facts)
    if encoder.takes_images:
        return {"channels": shape[0], "image_size": shape[-1]}
    return {"shape": shape, "sample": dataclasses.asdict(facts.sample)}


def load_encoder(run_or_checkpoint: str | Path) -> Backbone:
    """See `sslkit.load_encoder`. Accepts a run folder, a checkpoint, or an encoder.safetensors."""
    path = Path(run_or_checkpoint)
    if (file := find_encoder(path)) is not None:
        with torch.device("cpu"):  # also where `make_without_memory` asks for it
            return _encoder_from_file(file).eval()
    return load_measured_method(path)[2].encoder.eval()


def trained_on(run_or_checkpoint: str | Path) -> SampleSpec:
    """What the samples were that the encoder of `load_encoder` was trained on. Raises
    CheckpointError."""
    path = Path(run_or_checkpoint)
    if path.suffix == ".safetensors":
        return read_description(path).trained_on
    return read_environment(run_folder_of(path).path).facts.sample


def _encoder_from_file(path: Path) -> Backbone:
    from sslkit.host.plugins import load_plugins

    described = read_description(path)
    try:
        weights = safetensors_file.load(path)
        slot = resolve_component(load_plugins().registry, "backbone", described.backbone)
        bare = without_weights(slot)  # the file has the weights: nothing else is loaded
        with no_larger_than(weights.values()):
            encoder = build_backbone(bare, described.input_shape)
        encoder.import_state(weights)
    except SSLKitError:
        raise
    except ValidationError as error:
        raise _unreadable(path, "; ".join(map(_problem, error.errors()[:_SHOWN]))) from error
    except Exception as error:  # a file of anybody's: any field of a network may be anything
        raise _unreadable(path, reason(error)) from error
    return encoder


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read as an encoder: {why}")


def _problem(error: Any) -> str:
    return f"backbone.{'.'.join(map(str, error['loc']))}: {error['msg']}"[:_LONGEST]
