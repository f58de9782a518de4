"""The encoder of a run: written when it is finished, loaded for use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sslkit.api import Backbone, resolve_component
from sslkit.errors import CheckpointError, TrainingError
from sslkit.files import reason
from sslkit.nn import safetensors_file
from sslkit.recipe import recipe_hash
from sslkit.runs.atomic import UMASK
from sslkit.runs.state import _MAX_SIDE, read_facts, run_folder_of

from .build import Experiment
from .networks import without_weights
from .restore import load_measured_method


def save_encoder(experiment: Experiment) -> Path:
    """Writes `encoder.safetensors`: the encoder's weights under the names that other tools expect,
    and in its metadata what it takes to build the encoder again."""
    encoder, slot = experiment.method.encoder, experiment.recipe.backbone
    config = slot.cls.architecture(slot.config)
    described = {
        "backbone": {"name": slot.name, **config.model_dump(mode="json")},
        "channels": experiment.facts.channels,
        "image_size": max(view.size for view in experiment.facts.views),
        "preprocess": dataclasses.asdict(encoder.preprocess),
        "recipe_hash": recipe_hash(experiment.recipe),
    }
    weights = {
        name: value.detach().cpu().contiguous() for name, value in encoder.export_state().items()
    }
    temporary = experiment.folder.encoder.with_suffix(".tmp")
    try:
        safetensors_file.save(temporary, weights, described)
        temporary.chmod(0o666 & ~UMASK)  # safetensors lets only the owner read
        temporary.replace(experiment.folder.encoder)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{experiment.folder.encoder}: cannot be written ({reason(error)}); mend that, then "
            "resume the run"
        ) from error
    return experiment.folder.encoder


def load_encoder(run_or_checkpoint: str | Path) -> Backbone:
    """See `sslkit.load_encoder`. Accepts a run folder, a checkpoint, or an encoder.safetensors."""
    path = Path(run_or_checkpoint)
    if path.is_dir() and (path / "encoder.safetensors").exists():
        path = path / "encoder.safetensors"
    if path.suffix == ".safetensors":
        return _encoder_from_file(path).eval()
    return load_measured_method(path)[2].encoder.eval()


def input_channels(run_or_checkpoint: str | Path) -> int:
    """Channels of the images that the encoder of `load_encoder` takes. Raises CheckpointError."""
    path = Path(run_or_checkpoint)
    if path.suffix == ".safetensors":
        return int(encoder_metadata(path)["channels"])
    return read_facts(run_folder_of(path).path).channels


def _encoder_from_file(path: Path) -> Backbone:
    from sslkit.host.plugins import load_plugins

    described = encoder_metadata(path)
    slot = resolve_component(load_plugins().registry, "backbone", described["backbone"])
    bare = without_weights(slot)  # the file has the weights: nothing else is loaded
    encoder: Backbone = bare.build(
        channels=described["channels"], image_size=described["image_size"]
    )
    try:
        encoder.import_state(safetensors_file.load(path))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        # Names or shapes that the network does not have, too: a file of another encoder.
        raise CheckpointError(f"{path}: cannot be read as an encoder: {reason(error)}") from error
    return encoder


def encoder_metadata(path: Path) -> dict[str, Any]:
    """What `save_encoder` wrote beside the weights. Raises CheckpointError."""
    try:
        described = safetensors_file.describe(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as an encoder: {reason(error)}") from error
    if described is None:
        raise CheckpointError(
            f"{path}: not written by sslkit (no '{safetensors_file.META}' in its metadata); "
            "load plain timm weights with backbone.weights"
        )
    numbers = (described.get("channels"), described.get("image_size"))
    sizes_fit = all(isinstance(each, int) and 0 < each <= _MAX_SIDE for each in numbers)
    if not sizes_fit or not isinstance(described.get("backbone"), dict):
        raise CheckpointError(f"{path}: its metadata is not that of this version of sslkit")
    return described
