"""What is exported: the encoder of a run folder, of a checkpoint or of an encoder.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.api import Backbone, SampleSpec
from sslkit.errors import RunFolderError, SSLKitError, message_of
from sslkit.experiment.check import check_measuring
from sslkit.experiment.encoder import load_encoder
from sslkit.experiment.networks import make_for_encoder, measured_shape, without_starting_weights
from sslkit.experiment.restore import load_measured_method
from sslkit.recipe import Recipe, load_recipe, recipe_hash
from sslkit.runs.encoder_file import find_encoder, read_description
from sslkit.runs.endings import is_finished
from sslkit.runs.environment_file import read_environment
from sslkit.runs.evaluations import is_of_weights
from sslkit.runs.folder import RunFolder, run_folder_of


@dataclass(frozen=True)
class ExportSource:
    """An encoder and what is known about where it comes from."""

    path: Path
    """As the user gave it."""
    encoder: Backbone
    """On the CPU, in float32 and eval mode."""
    backbone: Mapping[str, Any]
    """The block of the recipe that builds it, every default written out, without starting weights.
    """
    distribution: str
    """The package that the backbone comes from."""
    sample: SampleSpec
    """What it was trained on."""
    recipe_hash: str
    recipe: Recipe | None
    """The recipe of the run around it; None where there is none that can be read."""
    alone: str
    """Why there is no recipe; empty where there is one."""
    run: Path | None
    """The run folder."""
    measured: bool
    """Whether the results in the run folder are those of this encoder."""

    @property
    def channels(self) -> int:
        """Channels of its input."""
        return self.sample.channels

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *sides) of one input: (C, S, S) of images."""
        return measured_shape(self.encoder, self.sample)


def open_source(path: Path) -> ExportSource:
    """Loads what the path names. Raises CheckpointError, RecipeError and RunFolderError."""
    if path.is_dir():
        folder = RunFolder.open(path)  # which refuses what is no run folder
        if is_of_weights(folder):
            return _from_measurement(path, folder)
    file = find_encoder(path)
    return _from_checkpoint(path) if file is None else _from_file(path, file)


def _from_file(path: Path, file: Path) -> ExportSource:
    from sslkit.host.plugins import load_plugins

    described = read_description(file)
    recipe, alone = _recipe_around(file)
    block = described.backbone
    return ExportSource(
        path=path,
        encoder=load_encoder(file).float(),
        backbone=block,
        distribution=load_plugins().registry.resolve("backbone", block["name"]).distribution,
        sample=described.trained_on,
        recipe_hash=described.recipe_hash,
        recipe=recipe,
        alone=alone,
        run=file.absolute().parent if recipe is not None else None,
        measured=recipe is not None and is_finished(file.parent),
    )


def _from_measurement(path: Path, folder: RunFolder) -> ExportSource:
    """The weights that `sslkit eval` measured, from where it took them."""
    recipe = load_recipe(folder.evaluation)
    facts = check_measuring(recipe)
    bare = without_starting_weights(recipe).backbone
    return ExportSource(
        path=path,
        encoder=make_for_encoder(recipe, facts).encoder.cpu().float().eval(),
        backbone=bare.dump(),
        distribution=bare.distribution,
        sample=facts.sample,
        recipe_hash=recipe_hash(recipe),
        recipe=None,  # that of a measurement, which says nothing of how the weights were trained
        alone="the weights were measured and not trained here",
        run=None,
        measured=False,
    )


def _recipe_around(file: Path) -> tuple[Recipe | None, str]:
    """The recipe of the run folder that the file lies in, or why there is none: the file is enough
    to build the encoder."""
    try:
        folder = RunFolder.open(file.parent)
    except RunFolderError:
        return None, "the encoder stands alone"
    try:
        return load_recipe(folder.recipe), ""
    except (SSLKitError, OSError) as error:  # of a plugin that is gone, or of another version
        return None, f"the recipe cannot be read: {message_of(error)}"


def _from_checkpoint(path: Path) -> ExportSource:
    recipe, _, method = load_measured_method(path)
    folder = run_folder_of(path)
    bare = without_starting_weights(recipe).backbone
    encoder = method.encoder.cpu().float().eval()
    return ExportSource(
        path=path,
        encoder=encoder,
        backbone=bare.dump(),
        distribution=bare.distribution,
        sample=read_environment(folder.path).facts.sample,
        recipe_hash=recipe_hash(recipe),
        recipe=recipe,
        alone="",
        run=folder.path,
        measured=False,
    )
