"""Measuring what is trained already: a run or checkpoint again, or any file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslkit.api import Method, RunFacts, RunView, Tracker
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display
from sslkit.engine.runtime import make_runtime
from sslkit.errors import CheckpointError, RecipeError, RunFolderError, SSLKitError, TrackingError
from sslkit.evaluation.features import state_digest
from sslkit.experiment.calibration import calibrate_as_in_run
from sslkit.experiment.check import check_measuring
from sslkit.experiment.encoder import encoder_metadata
from sslkit.experiment.measuring import conditions, make_suites, untrained_networks
from sslkit.experiment.networks import (
    initial_method,
    make_method,
    say_missing_untrained,
    without_starting_weights,
)
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import load_method
from sslkit.experiment.stores import Stores, class_sizes, open_stores
from sslkit.experiment.tags import run_tags
from sslkit.nn.weights import weight_file
from sslkit.recipe import (
    CommandOverride,
    Recipe,
    backbone_name,
    check_recipe,
    components,
    dump_resolved,
    find_recipe,
    flatten,
    hashed_view,
    load_recipe,
    read_field,
)
from sslkit.recipe.warnings import find_warnings
from sslkit.report.results import FinalResults
from sslkit.runs.environment import describe
from sslkit.runs.folder import RunFolder, new_run_id
from sslkit.runs.state import (
    RESULTS,
    is_finished,
    read_environment,
    run_folder_of,
    training_data_of,
)
from sslkit.tracking.log import RunLog, add_to_run, sync

EVALUATIONS = "evaluations"
"""The folder of a run in which `sslkit eval` keeps what it measures."""
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
_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, and where it is kept."""

    results: FinalResults
    kept: Path | None
    """A file in the run's folder, or a folder of its own; None where it cannot be written."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kept": str(self.kept) if self.kept else None, **self.results.to_json()}


# --- A run ----------------------------------------------------------------------------------------


def evaluate_run(
    run_or_checkpoint: str | Path,
    protocols: Sequence[str] | None,
    overrides: Sequence[str],
    display: Display,
) -> Measured:
    """Measures a run or checkpoint with protocols (default: those of its recipe), beside the
    baselines, and keeps the results in its folder (decision 0034). The metrics of a finished run,
    on its own data and with settings that were not changed, are logged with the run."""
    path = Path(run_or_checkpoint)
    _refuse_others(path)
    recipe, facts, method = load_method(
        path, [*protocol_overrides(run_folder_of(path).recipe, protocols), *overrides]
    )
    recipe = resolve(recipe)
    stores = open_stores(recipe, display)
    if facts.channels != stores.train.channels:
        raise RecipeError(
            f"{path}: its encoder takes images with {facts.channels} channel(s) and those of the "
            f"data have {stores.train.channels}; choose other data, or set its channels where it "
            "has the field"
        )
    measured = _facts_of(stores, facts)
    if problems := check_recipe(without_starting_weights(recipe), measured, training=False):
        raise RecipeError(*problems)
    _calibrate(method, path, recipe, stores.train)
    results = _measure(recipe, facts, stores, method, display, weights=False)
    return Measured(results, _keep(path, recipe, protocols, overrides, stores, results, display))


def _facts_of(stores: Stores, facts: RunFacts) -> RunFacts:
    """The facts of the run, with those of the data that is measured on."""
    train, test = stores.train, stores.test
    sizes = class_sizes(train.labels)
    return replace(
        facts,
        num_images=len(train),
        num_classes=len(train.class_names or sizes) if sizes else None,
        num_test_images=len(test) if test is not None else 0,
        test_has_labels=test is not None and test.labels is not None,
        class_sizes=sizes,
        evaluated_on={path: _facts_of(each, facts) for path, each in stores.elsewhere.items()},
    )


def _calibrate(method: Method, path: Path, recipe: Recipe, store: CachedSplit) -> None:
    """Gives the method of a run the batch statistics that the run measured it with: of its own
    training images, whatever it is measured on. recipe, store: of the measurement."""
    folder = run_folder_of(path)
    saved = load_recipe(folder.recipe)
    own = store if recipe.data == saved.data and recipe.seed == saved.seed else None
    calibrate_as_in_run(method, saved, path, training_data_of(folder), own)


def _refuse_others(path: Path) -> None:
    """Raises CheckpointError where the path is neither a run folder nor a checkpoint in one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such run folder or checkpoint{_is_in_timm(path)}")
    if path.is_file() and not _is_in_a_run(path):
        raise CheckpointError(
            f"{path}: is no checkpoint in a run folder; to measure it as weights, name the recipe "
            "to measure them by: --recipe RECIPE"
        )


def _is_in_a_run(checkpoint: Path) -> bool:
    """Whether a file lies where a run has its checkpoints."""
    return RunFolder(checkpoint.absolute().parent.parent).recipe.exists()


def _measure(
    recipe: Recipe,
    facts: RunFacts,
    stores: Stores,
    method: Method,
    display: Display,
    *,
    weights: bool,
) -> FinalResults:
    """A trained and the untrained method with the protocols of the recipe, the trained one with the
    batch statistics that it has. weights: whether only the encoder is trained, by someone else."""
    missing = say_missing_untrained(recipe, facts, display)
    runtime = make_runtime(recipe.train)
    runtime.prepare(method)
    suite = make_suites(recipe, runtime, stores, method)
    trained = suite.run(method.encoder, 0, True, () if weights else method.projection_layers)
    untrained = None
    if missing is None:
        untrained = initial_method(without_starting_weights(recipe), facts, runtime)
    networks = untrained_networks(untrained, with_projection=not weights)
    measured = conditions(recipe, method.encoder, missing, given=weights)
    return FinalResults.collect(trained, suite.baselines(*networks), conditions=measured)


def _keep(
    path: Path,
    recipe: Recipe,
    protocols: Sequence[str] | None,
    overrides: Sequence[str],
    stores: Stores,
    results: FinalResults,
    display: Display,
) -> Path | None:
    """Writes the results into the run's folder and sends them to its tracker. A run that is still
    going, or that lies where nobody may write, is left as it is."""
    document = {
        "of": path.name,
        "overrides": list(overrides),
        "protocols": [slot.dump() for slot in recipe.evaluate],
        "seed": recipe.seed,
        "device": recipe.train.device,
        "data": stores.fingerprints,
        **results.to_json(),
    }
    try:
        with RunFolder.open(run_folder_of(path).path, write=True) as folder:
            kept = folder.write_json(f"{EVALUATIONS}/{new_run_id()}.json", document)
            asked = _asked(folder, protocols)
            unchanged = (
                asked is not None
                and _is_the_end(path, folder)
                and _is_what_was_asked(recipe, asked, stores, folder)
            )
            add_to_run(folder, _metrics(results) if unchanged else {}, [kept], EVALUATIONS)
            tracker = recipe.tracking.build()
            if _is_chosen(tracker, overrides):
                sync(folder, tracker)
            else:
                display.message(
                    f"not sent to {tracker.named_store()}, which only the run's recipe names: "
                    f"sslkit sync {folder.path} sends it"
                )
            return kept
    except TrackingError as error:
        display.message(f"warning: {error}; sslkit sync {folder.path}")
        return kept
    except (SSLKitError, OSError) as error:  # what was measured is shown all the same
        display.message(f"warning: not kept in the run: {error}")
        return None


def _is_chosen(tracker: Tracker, overrides: Sequence[str]) -> bool:
    """Whether the user chose where results are sent, with `-o` or by the environment; the recipe of
    a run folder may be a stranger's."""
    given = (override.partition("=")[0].strip() for override in overrides)
    return tracker.named_store() is None or any(
        name == "tracking" or name.startswith("tracking.") for name in given
    )


def _metrics(results: FinalResults) -> Mapping[str, float]:
    return {**results.trained.metrics, **results.baselines.metrics}


def _asked(folder: RunFolder, protocols: Sequence[str] | None) -> Recipe | None:
    """The recipe of the run with these protocols and nothing else changed; None where a protocol
    needs fields that only overrides give, such as data of its own."""
    try:
        return load_recipe(folder.recipe, protocol_overrides(folder.recipe, protocols))
    except RecipeError:
        return None


def _is_the_end(path: Path, folder: RunFolder) -> bool:
    """Whether these are the weights that the run ended with."""
    if not is_finished(folder.path):
        return False
    newest = max((each.name for each in folder.checkpoints.glob("*.pt")), default=None)
    return path.is_dir() or path.name == newest


def _is_what_was_asked(recipe: Recipe, asked: Recipe, stores: Stores, folder: RunFolder) -> bool:
    """Whether overrides left alone what results depend on: a metric of a run means one thing."""
    same = hashed_view(recipe) == hashed_view(asked) and recipe.seed == asked.seed
    return same and stores.fingerprints == read_environment(folder.path).get("data")


# --- A file of weights ----------------------------------------------------------------------------


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
    protocols or others. The results get a folder of their own in `runs_dir`, and a run of the
    tracker.

    weights: a timm weight file, an encoder.safetensors, a run folder or an export for timm; None:
    what the recipe's backbone starts from. model: a timm model for the weights, normalised as timm
    says; with its published weights where there is no file.

    Raises RecipeError, CheckpointError and DataError."""
    if weights is not None and not weights.exists():
        raise CheckpointError(f"{weights}: no such weight file or run folder{_is_in_timm(weights)}")
    if weights is not None and weights.is_file() and _is_in_a_run(weights):
        raise CheckpointError(
            f"{weights}: is a checkpoint of a run; measure it without --recipe and --backbone"
        )
    file = find_recipe(recipe)
    option = f"--backbone {model}" if model is not None else f"--recipe {recipe}"
    whole = [each for each in overrides if each.partition("=")[0].strip() == "backbone"]
    backbone = read_field(file, "backbone", whole)
    start = [CommandOverride(e, option) for e in _starting_backbone(backbone, weights, model)]
    others = [each for each in overrides if each not in whole]
    wanted = load_recipe(file, [*whole, *start, *protocol_overrides(file, protocols), *others])
    chosen = resolve(wanted.model_copy(update={"train": wanted.train.model_copy(update=_EAGER)}))
    name = _name(chosen, weights)
    facts = check_measuring(chosen)
    stores = open_stores(chosen, display)
    method = make_method(chosen, facts)
    digest = state_digest(method.encoder)
    for advice in find_warnings(chosen, facts):
        if advice.path.startswith("backbone."):
            display.message(f"warning: {advice}")
    if warning := _other_size(chosen, model, facts):
        display.message(f"warning: {warning}")
    results = _measure(chosen, facts, stores, method, display, weights=True)
    try:
        kept = _keep_apart(name, digest, chosen, stores, results)
    except (RunFolderError, OSError) as error:  # what was measured is shown all the same
        display.message(f"warning: not kept: {error}")
        return Measured(results, None)
    return Measured(results, kept)


def _starting_backbone(given: Any, weights: Path | None, model: str | None) -> list[str]:
    """The override that puts the weights into a backbone. given: the block of the recipe, not
    validated; None where it has none."""
    if model is not None:
        block = {"name": "timm", "model": model, **_timm_preprocessing(model)}
        block |= {"pretrained": True} if weights is None else {"weights": str(weights)}
    elif weights is None:
        return []
    else:
        own = _own_block(weights)
        if own is None and not isinstance(given, dict):
            return []  # which is found when the recipe is validated
        block = {**(own or given), "weights": str(weights)}
        block |= {"pretrained": False} if block.get("pretrained") else {}
    return [f"backbone={json.dumps(block)}"]


def _own_block(weights: Path) -> dict[str, Any] | None:
    """The backbone that sslkit wrote beside the weights; None where another program wrote them."""
    file = weight_file(weights)
    if file.suffix != ".safetensors" or not file.exists():
        return None
    try:
        return dict(encoder_metadata(file)["backbone"])
    except CheckpointError:  # without our metadata, or no such file at all, which is found later
        return None


def _is_in_timm(path: Path) -> str:
    """What to do where a path that is not there is the name of a timm model."""
    import timm

    if not timm.is_model(str(path)):
        return ""
    return f"; timm's model is measured by --backbone {path} --recipe RECIPE"


def _timm_preprocessing(model: str) -> dict[str, Any]:
    """Normalisation and interpolation that a timm model was trained with."""
    import timm

    known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is None:
        return {}
    found: dict[str, Any] = {"normalize": {"mean": list(known.mean), "std": list(known.std)}}
    if known.interpolation in _INTERPOLATIONS:
        found["interpolation"] = known.interpolation
    return found


def _other_size(recipe: Recipe, model: str | None, facts: RunFacts) -> str | None:
    """A warning where timm's own weights would be measured in another size."""
    import timm

    pretrained = getattr(recipe.backbone.config, "pretrained", False)
    if model is None or not pretrained or not timm.is_model(model):
        return None
    trained, here = timm.get_pretrained_cfg(model).input_size[-1], max(v.size for v in facts.views)
    if trained == here:
        return None
    return (
        f"{model} was trained at {trained} px and sees {here} px here; "
        f"-o augmentation.size={trained} measures it there"
    )


def _name(recipe: Recipe, weights: Path | None) -> str:
    """What to call the weights. Raises RecipeError where there are none, or others: a network would
    be measured as if it were another one."""
    config = recipe.backbone.config
    start: Path | None = getattr(config, "weights", None)
    if weights is not None and start != weights:
        raise RecipeError(f"-o backbone: would replace {weights}, the weights to be measured")
    if start is not None:
        around = start.absolute().parent.name
        return around if start.name in ("encoder.safetensors", "model.safetensors") else start.stem
    if getattr(config, "pretrained", False):
        return backbone_name(recipe)
    raise RecipeError(
        f"backbone: '{recipe.backbone.name}' starts from no weights; "
        "give a weight file, --backbone NAME of timm, or set backbone.weights"
    )


def _keep_apart(
    name: str, digest: str, recipe: Recipe, stores: Stores, results: FinalResults
) -> Path:
    """Writes a folder for the results and tracks it as a run of its own."""
    title = f"eval-{name}"
    used = [slot for _, slot in components(recipe)]
    environment = describe(
        device=recipe.train.device,
        plugins={slot.distribution: slot.version for slot in used},
        data=stores.fingerprints,
    )
    with RunFolder.create(recipe.runs_dir, title) as folder:
        artifacts = [
            folder.write_text(folder.evaluation, dump_resolved(recipe)),
            folder.write_json(folder.environment, environment),
            folder.write_json(RESULTS, results.to_json()),
        ]
        view = RunView(folder.path, title, _parameters(recipe), _tags(recipe, name, digest))
        with RunLog(folder, recipe.tracking.build(), view) as log:
            log.log(_metrics(results), 0)
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


def protocol_overrides(recipe_file: Path, protocols: Sequence[str] | None) -> list[str]:
    """Overrides that leave these protocols in a recipe: with its settings where it has them, with
    defaults where it has not."""
    if protocols is None:
        return []
    listed = read_field(recipe_file, "evaluate")
    blocks = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    known = {block.get("name"): block for block in reversed(blocks)}
    chosen = [known.get(name, {"name": name}) for name in protocols]
    return [CommandOverride(f"evaluate={json.dumps(chosen)}", f"--protocol {','.join(protocols)}")]
