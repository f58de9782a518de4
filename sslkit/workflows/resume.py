"""Going on with a run that was stopped, killed or failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.api import RunFacts
from sslkit.engine.display import Display
from sslkit.engine.signals import StopSignals
from sslkit.errors import CheckpointError, RecipeError, RunFolderError
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import restore
from sslkit.parallel.launch import read_launch
from sslkit.parallel.world import World
from sslkit.recipe import Recipe, components, find_recipe, hashed_view, load_recipe, recipe_hash
from sslkit.runs.endings import forget_endings, is_finished
from sslkit.runs.environment_file import add_resume, is_fork, read_environment
from sslkit.runs.folder import RunFolder, find_runs, held_by_first
from sslkit.runs.upload_state import UploadState

from .execute import RunResult, execute, explained_memory

_PATIENCE_S = 30.0


def resume_run(
    path: Path,
    recipe: str | Path | None,
    overrides: Sequence[str],
    display: Display,
    stop: StopSignals,
    world: World,
) -> RunResult:
    """Resumes a run from its newest checkpoint, with the recipe that it was started with."""
    with held_by_first(world, lambda: hold(path, world)) as folder:
        if world.once(lambda: is_finished(folder.path)):
            raise RecipeError(
                f"{path}: this run is finished; --fork {path} starts a new one from it"
            )
        saved = load_recipe(folder.recipe)
        wanted = resolve(load_recipe(find_recipe(recipe) if recipe else folder.recipe, overrides))
        refuse_changes(saved, wanted, path)
        facts = check_from_elsewhere(wanted, folder)
        with explained_memory(wanted):
            experiment = build(wanted, facts, folder, display, world)
        refuse_other_data(experiment)
        state, damaged = experiment.training.output.checkpoints.load_newest(world)
        for message in damaged:
            display.message(f"warning: {message}; going on from the checkpoint before it")
        if state is None:
            display.message(f"{path}: no checkpoint; starting from the first step again")
        else:
            restore(experiment, state, str(path))
        world.once(lambda: record_resume(experiment))
        return execute(experiment, stop)


def hold(path: Path, world: World) -> RunFolder:
    """The run folder, for writing. Where processes were killed and started again, one of those
    before may have it for moments yet: it ends when it finds that its peers are gone."""
    patience = 0.0 if world.size == 1 else _PATIENCE_S
    return RunFolder.open(path, write=True, patience_s=patience)


def record_resume(experiment: Experiment) -> None:
    """Notes the resume in the run folder, and warns of what may change the bits."""
    folder, step = experiment.folder, experiment.training.progress.step
    changed = add_resume(folder, step, experiment.describe())
    forget_endings(folder)
    if changed:
        first = [f"{name} {old} -> {new}"[:80] for name, (old, new) in list(changed.items())[:6]]
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        experiment.training.output.display.message(
            f"warning: {', '.join(first)}{more}: changed since this run was last started; from "
            f"step {step} on its numbers may not be those of a run without a stop"
        )


def check_from_elsewhere(recipe: Recipe, folder: RunFolder) -> RunFacts:
    """`check`, which adds where the run was started if the data cannot be found from here: the
    paths of a recipe count from the working folder."""
    try:
        return check(recipe)
    except RecipeError as error:
        if not folder.environment.exists():
            raise
        home = read_environment(folder.path).working_directory
        if home in (None, str(Path.cwd())):
            raise
        raise RecipeError(
            *error.problems, f"{folder.path}: this run was started in {home}; go there first"
        ) from error


def find_unfinished(recipe: Recipe) -> Path | None:
    """The newest run of this recipe, on the same paths, that has not come to its end."""
    return _newest(recipe, lambda path: not is_finished(path) and not is_fork(path))


def finished_before(recipe: Recipe, world: World) -> Path | None:
    """The run of this recipe that these processes had already brought to its end when they were
    started again (while a tracker took the last files, say): there is nothing left to do."""
    launch = read_launch()
    # Not the same on all ranks: torchrun counts on each machine for itself.
    if not world.any(launch is not None and launch.restarts > 0):
        return None

    def is_ours(path: Path) -> bool:
        begun_by = read_environment(path).launch
        return is_finished(path) and begun_by is not None and begun_by == name

    name = None if launch is None else launch.name
    return world.once(lambda: _newest(recipe, is_ours))


def finished_untold(recipe: Recipe) -> Path | None:
    """The newest run of this recipe where it came to its end and its tracker was not told so: its
    process was killed on the way, or the tracker was away. None where another one is newer."""
    newest = _newest(recipe, lambda path: not is_fork(path))
    if newest is None or not is_finished(newest):
        return None
    fed = UploadState.load(RunFolder(newest).tracker)
    return newest if fed is not None and not fed.closed else None


def _newest(recipe: Recipe, is_wanted: Callable[[Path], bool]) -> Path | None:
    found = []
    for begun in find_runs(Path(recipe.runs_dir), recipe.name):
        try:
            folder = RunFolder.open(begun.path)
            if not is_wanted(folder.path):
                continue
            saved = load_recipe(folder.recipe)
        except (CheckpointError, RecipeError, RunFolderError):  # of another version, or not ours
            continue
        if _identity(saved) == _identity(recipe):
            found.append(folder)
    return max(found, key=lambda folder: folder.id).path if found else None


def _identity(recipe: Recipe) -> tuple[object, ...]:
    return recipe.name, recipe.seed, recipe_hash(recipe), _paths(recipe)


def _paths(recipe: Recipe) -> dict[str, Path]:
    """Every path in the components of a recipe, absolute; the hash leaves their values out."""
    return {
        f"{where}.{field}": value.absolute()
        for where, slot in components(recipe)
        for field, value in slot.config
        if isinstance(value, Path) and not where.startswith(("tracking", "callbacks"))
    }


def refuse_changes(saved: Recipe, wanted: Recipe, path: Path) -> None:
    """Raises RecipeError where a resume would change what the run computes."""
    changed = changed_fields(saved, wanted)
    if saved.seed != wanted.seed:
        changed["seed"] = saved.seed, wanted.seed
    if changed:
        raise RecipeError(
            *(
                f"{key}: the run has {before!r}, this recipe {after!r}; a resume keeps the recipe: "
                f"use --fork {path} for a new run from there"
                for key, (before, after) in sorted(changed.items())
            )
        )


def changed_fields(saved: Recipe, wanted: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (before, after) of what makes two recipes other experiments."""
    before, after = _flat(hashed_view(saved)), _flat(hashed_view(wanted))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def refuse_other_data(experiment: Experiment, folder: RunFolder | None = None) -> None:
    """Raises CheckpointError where the data is not what the run was started with. folder: of that
    run; default: the experiment's own."""
    folder = folder or experiment.folder
    saved = read_environment(folder.path).data
    found = experiment.stores.fingerprints
    for split, before in saved.items():
        if before != found.get(split):
            raise CheckpointError(
                f"{folder.path}: the {split} data has changed since this run began (fingerprint "
                f"{before}, now {found.get(split)}); start a new run with --fork {folder.path}"
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        items = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, (list, tuple)) and tree:
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        return {prefix: tree}
    return {
        key: value
        for name, branch in items
        for key, value in _flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }
