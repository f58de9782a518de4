"""Measuring a run or a checkpoint again, with any evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sslkit.api import Method, RunFacts, Tracker
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display
from sslkit.errors import CheckpointError, RecipeError, SSLKitError, TrackingError
from sslkit.experiment.calibration import calibrate_as_in_run
from sslkit.experiment.networks import refuse_unlike_samples, without_starting_weights
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import load_method
from sslkit.experiment.stores import Stores, class_sizes, open_stores
from sslkit.parallel.finding import require_one_process
from sslkit.recipe import Recipe, check_recipe, hashed_view, load_recipe
from sslkit.report.final_results import FinalResults
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.endings import is_finished
from sslkit.runs.environment_file import read_environment
from sslkit.runs.evaluations import write_evaluation
from sslkit.runs.folder import RunFolder, lies_in_a_run, run_folder_of
from sslkit.tracking.log import add_to_run, sync

from .measure import Measured, measure, metrics_of, protocol_overrides
from .published import say_published


def evaluate_run(
    run_or_checkpoint: str | Path,
    protocols: Sequence[str] | None,
    overrides: Sequence[str],
    display: Display,
) -> Measured:
    """Measures a run or checkpoint with evaluators (default: those of its recipe), beside the
    baselines, and keeps the results in its folder (decision 0034). The metrics of a finished run,
    on its own data and with settings that were not changed, are logged with the run."""
    require_one_process()
    path = Path(run_or_checkpoint)
    _refuse_others(path)
    recipe, facts, method = load_method(
        path, [*protocol_overrides(run_folder_of(path).recipe, protocols), *overrides]
    )
    recipe = resolve(recipe)
    stores = open_stores(recipe, display)
    refuse_unlike_samples(str(path), method.encoder, facts.sample, stores.train.sample)
    measured = _facts_of(stores, facts)
    if problems := check_recipe(without_starting_weights(recipe), measured, training=False):
        raise RecipeError(*problems)
    own = _calibrate(method, path, recipe, stores.train)
    results = measure(recipe, facts, stores, method, display, calibration=own)
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


def _calibrate(
    method: Method, path: Path, recipe: Recipe, store: CachedSplit
) -> CachedSplit | None:
    """Gives the method of a run the batch statistics that the run measured it with: of its own
    training images, whatever it is measured on. recipe, store: of the measurement. Returns these
    images, where they count."""
    folder = run_folder_of(path)
    saved = load_recipe(folder.recipe)
    own = store if recipe.data == saved.data and recipe.seed == saved.seed else None
    trained_on = read_environment(folder.path).data.get("train")
    return calibrate_as_in_run(method, saved, path, trained_on, own)


def _refuse_others(path: Path) -> None:
    """Raises CheckpointError where the path is neither a run folder nor a checkpoint in one."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such run folder or checkpoint{say_published(path)}")
    if path.is_file() and not lies_in_a_run(path):
        raise CheckpointError(
            f"{path}: is no checkpoint in a run folder; to measure it as weights, name the recipe "
            "to measure them by: --recipe RECIPE"
        )


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
            kept = write_evaluation(folder, document)
            asked = _asked(folder, protocols)
            unchanged = (
                asked is not None
                and _is_the_end(path, folder)
                and _keeps_settings(recipe, asked, stores, folder)
            )
            metrics = metrics_of(results) if unchanged else {}
            add_to_run(folder, metrics, [kept], folder.evaluations.name)
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


def _asked(folder: RunFolder, protocols: Sequence[str] | None) -> Recipe | None:
    """The recipe of the run with these evaluators and nothing else changed; None where an evaluator
    needs fields that only overrides give, such as data of its own."""
    try:
        return load_recipe(folder.recipe, protocol_overrides(folder.recipe, protocols))
    except RecipeError:
        return None


def _is_the_end(path: Path, folder: RunFolder) -> bool:
    """Whether these are the weights that the run ended with."""
    if not is_finished(folder.path):
        return False
    newest = Checkpoints(folder.checkpoints, keep=1).paths()[-1:]
    return path.is_dir() or path.name in [each.name for each in newest]


def _keeps_settings(recipe: Recipe, asked: Recipe, stores: Stores, folder: RunFolder) -> bool:
    """Whether overrides left alone what results depend on: a metric of a run means one thing."""
    same = hashed_view(recipe) == hashed_view(asked) and recipe.seed == asked.seed
    return same and stores.fingerprints == read_environment(folder.path).data
