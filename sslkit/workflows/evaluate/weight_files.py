"""Measuring any file of weights, as the start of a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslkit.api import RunFacts, RunView, largest_view
from sslkit.engine.display import Display
from sslkit.errors import CheckpointError, RecipeError, RunFolderError
from sslkit.evaluation.features import state_digest
from sslkit.experiment.check import check_measuring
from sslkit.experiment.description import run_tags
from sslkit.experiment.networks import make_for_encoder
from sslkit.experiment.resolve import resolve
from sslkit.experiment.stores import Stores, open_stores
from sslkit.nn.weights import ENCODER_FILE, TIMM_FILE, weight_file
from sslkit.parallel.finding import require_one_process
from sslkit.recipe import (
    CommandOverride,
    Recipe,
    backbone_name,
    components,
    dump_resolved,
    find_recipe,
    flatten,
    load_recipe,
    read_field,
)
from sslkit.recipe.warnings import find_warnings
from sslkit.report.final_results import FinalResults
from sslkit.runs.encoder_file import read_description
from sslkit.runs.environment import describe
from sslkit.runs.evaluations import write_weights_evaluation
from sslkit.runs.folder import RunFolder, lies_in_a_run
from sslkit.tracking.log import RunLog

from .measure import Measured, measure, metrics_of, protocol_overrides
from .published import published_block, say_published, started_from

_MEASURED = (
    "name",
    "seed",
    "data.",
    "augmentation.",
    "backbone.",
    "evaluate.",
    "evaluation_precision",
)
_MEASURED_IN_TRAIN = ("train.channels_last", "train.device")
"""Fields of a recipe that the measurement of a weight file depends on."""
_EAGER = {"compile": False, "compile_augmentation": False, "cuda_graphs": False}
"""Fields that only speed up training, and that a machine may lack the compiler for."""


def evaluate_weights(
    weights: Path | None,
    recipe: str | Path,
    protocols: Sequence[str] | None,
    overrides: Sequence[str],
    display: Display,
    *,
    model: str | None = None,
) -> Measured:
    """Measures weights as the start of a recipe: on its data, in its views' size, with its
    evaluators or others. The results get a folder of their own in `runs_dir`, and a run of the
    tracker.

    weights: a timm weight file, an encoder.safetensors, a run folder or an export for timm; None:
    what the recipe's backbone starts from. model: the name of a model that an installed
    backbone knows, such as timm's, prepared as it was trained; with its published weights where
    there is no file.

    Raises RecipeError, CheckpointError and DataError."""
    require_one_process()
    if weights is not None:
        _refuse_no_weights(weights)
    chosen = _starting_recipe(weights, recipe, protocols, overrides, model)
    name = _name(chosen, weights)
    facts = check_measuring(chosen)
    stores = open_stores(chosen, display)
    method = make_for_encoder(chosen, facts)
    digest = state_digest(method.encoder)
    for advice in find_warnings(chosen, facts):
        if advice.path.startswith("backbone."):
            display.message(f"warning: {advice}")
    if warning := _other_size(chosen, facts):
        display.message(f"warning: {warning}")
    results = measure(chosen, facts, stores, method, display, weights=True)
    try:
        kept = _keep(name, digest, chosen, stores, results)
    except (RunFolderError, OSError) as error:  # what was measured is shown all the same
        display.message(f"warning: not kept: {error}")
        return Measured(results, None)
    return Measured(results, kept)


def _refuse_no_weights(weights: Path) -> None:
    """Raises CheckpointError where there is no such file or folder, and for a checkpoint."""
    if not weights.exists():
        known = say_published(weights)
        raise CheckpointError(f"{weights}: no such weight file or run folder{known}")
    if weights.is_file() and lies_in_a_run(weights):
        raise CheckpointError(
            f"{weights}: is a checkpoint of a run; measure it without --recipe and --backbone"
        )


def _starting_recipe(
    weights: Path | None,
    recipe: str | Path,
    protocols: Sequence[str] | None,
    overrides: Sequence[str],
    model: str | None,
) -> Recipe:
    """The recipe, resolved, with a backbone that starts from the weights and without what only
    speeds up training; see `evaluate_weights`."""
    file = find_recipe(recipe)
    option = f"--backbone {model}" if model is not None else f"--recipe {recipe}"
    whole = [each for each in overrides if each.partition("=")[0].strip() == "backbone"]
    backbone = read_field(file, "backbone", whole)
    start = [CommandOverride(e, option) for e in _starting_backbone(backbone, weights, model)]
    others = [each for each in overrides if each not in whole]
    wanted = load_recipe(file, [*whole, *start, *protocol_overrides(file, protocols), *others])
    return resolve(wanted.model_copy(update={"train": wanted.train.model_copy(update=_EAGER)}))


def _starting_backbone(given: Any, weights: Path | None, model: str | None) -> list[str]:
    """The override that puts the weights into a backbone. given: the block of the recipe, not
    validated; None where it has none."""
    if model is not None:
        block: Any = published_block(model)
    elif weights is None:
        return []
    else:
        block = _own_block(weights) or given
    if weights is not None:
        block = started_from(block, weights) if isinstance(block, dict) else None
    return [] if block is None else [f"backbone={json.dumps(block)}"]


def _own_block(weights: Path) -> dict[str, Any] | None:
    """The backbone that sslkit wrote beside the weights; None where another program wrote them."""
    file = weight_file(weights)
    if file.suffix != ".safetensors" or not file.exists():
        return None
    try:
        return dict(read_description(file).backbone)
    except CheckpointError:  # without our metadata, or no such file at all, which is found later
        return None


def _other_size(recipe: Recipe, facts: RunFacts) -> str | None:
    """A warning where weights would be measured in another size than they were trained in."""
    start = recipe.backbone.cls.starting_weights(recipe.backbone.config)
    trained = start.image_size if start is not None else None
    here = largest_view(facts.views, facts.channels)[-1]
    if trained is None or trained == here:
        return None
    return (
        f"{backbone_name(recipe)} was trained at {trained} px and sees {here} px here; "
        f"-o augmentation.size={trained} measures it there"
    )


def _name(recipe: Recipe, weights: Path | None) -> str:
    """What to call the weights. Raises RecipeError where there are none, or others: a network would
    be measured as if it were another one."""
    start = recipe.backbone.cls.starting_weights(recipe.backbone.config)
    file = start.path if start is not None else None
    if weights is not None and file != weights:
        raise RecipeError(f"-o backbone: would replace {weights}, the weights to be measured")
    if file is not None:
        around = file.absolute().parent.name
        return around if file.name in (ENCODER_FILE, TIMM_FILE) else file.stem
    if start is not None:
        return backbone_name(recipe)
    raise RecipeError(
        f"backbone: '{recipe.backbone.name}' starts from no weights; "
        "give a weight file, --backbone MODEL, or a backbone whose class says what weights it "
        "starts from (`starting_weights`)"
    )


def _keep(name: str, digest: str, recipe: Recipe, stores: Stores, results: FinalResults) -> Path:
    """Writes a folder for the results and tracks it as a run of its own."""
    title = f"eval-{name}"
    used = [slot for _, slot in components(recipe)]
    environment = describe(
        device=recipe.train.device,
        plugins={slot.distribution: slot.version for slot in used},
        data=stores.fingerprints,
    )
    with RunFolder.create(recipe.runs_dir, title) as folder:
        artifacts = write_weights_evaluation(
            folder, dump_resolved(recipe), environment, results.to_json()
        )
        view = RunView(folder.path, title, _parameters(recipe), _tags(recipe, name, digest))
        with RunLog(folder, recipe.tracking.build(), view) as log:
            log.log(metrics_of(results), 0)
            for artifact in artifacts:
                log.artifact(artifact)
        return folder.path


def _parameters(recipe: Recipe) -> dict[str, str | int | float | bool | None]:
    wanted = (*_MEASURED, *_MEASURED_IN_TRAIN)
    return {key: value for key, value in flatten(recipe).items() if key.startswith(wanted)}


def _tags(recipe: Recipe, name: str, digest: str) -> dict[str, str]:
    """Those of a run, without what only a training has."""
    tags = run_tags(recipe)
    for key in ("sslkit.method", "sslkit.recipe_hash"):
        del tags[key]
    return {**tags, "sslkit.weights": name, "sslkit.encoder": digest}
