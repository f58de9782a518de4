"""`sslkit run`: starts a run, forks one, or goes on with one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sslkit.api import RunFacts
from sslkit.engine.display import Display, display_of, make_display
from sslkit.engine.loop import finish_saving, save
from sslkit.engine.signals import StopSignals
from sslkit.errors import (
    CheckpointError,
    DataError,
    PluginError,
    RecipeError,
    SSLKitError,
    TrainingError,
)
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import restore
from sslkit.parallel.finding import find_world
from sslkit.parallel.world import World
from sslkit.recipe import Recipe, dump_resolved, load_recipe, parse_recipe
from sslkit.recipe.warnings import find_warnings, network_warnings
from sslkit.runs.endings import why_stopped
from sslkit.runs.environment_file import write_environment
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.runs.state import last_metrics, read_state, step_of

from .execute import RunResult, ended_by_plugin, execute, explained_memory
from .resume import find_unfinished, finished_before, finished_untold, resume_run


def run_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> RunResult:
    """Runs a recipe from start to end; see `sslkit.run`."""
    return start(recipe, overrides, display=make_display())


def start(
    recipe: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    fork: Path | None = None,
    display: Display,
    stop: StopSignals | None = None,
    world: World | None = None,
) -> RunResult:
    """Starts a run, or goes on with one.

    resume: a run folder, or "auto" for the newest unfinished run of this recipe (a new one where
    there is none). fork: a run folder or checkpoint whose whole state a new run starts from. stop:
    active signals; by default they are for the time of the run. world: the processes that share
    the work; by default this one alone, and a RecipeError where others were started beside it."""
    world = world or find_world()
    display = display_of(world, display)
    with nullcontext(stop) if stop is not None else StopSignals() as stop:
        stop.at_once = True  # until there is something to save
        with world.reporting(), named_ends(stop, new=resume is None):
            return _start(recipe, overrides, resume, fork, display, stop, world)


@contextmanager
def named_ends(stop: StopSignals, *, new: bool) -> Iterator[None]:
    """Gives a stop before the first step, and an end by a plugin, their words. new: whether the run
    is."""
    try:
        yield
    except KeyboardInterrupt as error:
        stop.at_once = False  # a second signal must not cut off what tells the other ranks
        if stop.requested is None:
            raise ended_by_plugin(error) from error
        kept = "nothing was kept" if new else "the run is as it was"
        raise SSLKitError(f"stopped by {stop.requested} before the first step; {kept}") from None
    except SystemExit as error:
        raise ended_by_plugin(error) from error


def _start(
    recipe: str | Path | None,
    overrides: Sequence[str],
    resume: str | None,
    fork: Path | None,
    display: Display,
    stop: StopSignals,
    world: World,
) -> RunResult:
    if resume is not None and fork is not None:
        raise RecipeError("--resume and --fork exclude each other: give one of them")
    if resume is not None and resume != "auto":
        return resume_run(Path(resume), recipe, overrides, display, stop, world)
    if recipe is None:
        raise RecipeError("a recipe is needed; `sslkit recipes list` shows the shipped ones")

    loaded = resolve(load_recipe(recipe, overrides))
    unfinished = world.once(lambda: find_unfinished(loaded)) if resume == "auto" else None
    if unfinished is not None:
        if (why := world.once(lambda: why_stopped(unfinished))) is not None:
            raise TrainingError(
                f"{unfinished}: {why}. It stays stopped; go on all the same (to the next "
                f"evaluation) with: sslkit run --resume {unfinished}"
            )
        display.message(f"going on with {unfinished}")
        return resume_run(unfinished, recipe, overrides, display, stop, world)
    done = None
    if resume == "auto":
        done = finished_before(loaded, world) or world.once(lambda: finished_untold(loaded))
    if done is not None:
        display.message(
            f"{done}: this run is finished; what its tracker misses is sent by: sslkit sync {done}"
        )
        return RunResult(done, last_metrics(RunFolder(done)), None, speaks=world.is_first)
    return _begin(loaded, fork, display, stop, world)


def _begin(
    loaded: Recipe, fork: Path | None, display: Display, stop: StopSignals, world: World
) -> RunResult:
    """A new run. loaded: its recipe, resolved."""
    state = read_state(fork, world) if fork is not None else None
    facts = check(loaded)
    refuse_unlike_data(world, {"training": f"{facts.num_images:,} {facts.sample.noun}s"})
    for warning in find_warnings(loaded, facts):
        display.message(f"warning: {warning}")
    with held_by_first(world, lambda: RunFolder.create(loaded.runs_dir, loaded.name)) as folder:
        with removed_on_failure(folder), explained_memory(loaded):
            experiment = build(loaded, facts, folder, display, world)
            for warning in network_warnings(
                loaded, experiment.method, experiment.facts.sample.noun
            ):
                display.message(f"warning: {warning}")
            if state is not None:
                refuse_ended(state, facts, f"{fork}")
                restore(experiment, state, f"{fork}")
                save(experiment.training)  # a resume before the next one must have a start
                finish_saving(experiment.training)
            refuse_unlike_data(world, experiment.stores.fingerprints)
            world.once(lambda: describe_folder(experiment, fork))
        return execute(experiment, stop)


def refuse_unlike_data(world: World, seen: Mapping[str, str]) -> None:
    """Raises DataError where ranks see other data: each machine may have files of its own. seen:
    split -> its fingerprint, or its size. A resume compares them with what the run began with."""
    brought = world.bring(dict(seen))

    def compare() -> None:
        for rank, each in enumerate(brought):
            for split, found in each.items():
                if found != brought[0].get(split):
                    raise DataError(
                        f"data: the {split} data is {brought[0].get(split)} on rank 0 and {found} "
                        f"on rank {rank}; all machines have to see the same files"
                    )

    world.once(compare)


def describe_folder(experiment: Experiment, fork: Path | None) -> None:
    """Writes what a run is, beside what it will come to."""
    folder = experiment.folder
    origin = (str(fork), experiment.training.progress.step) if fork else (None, None)
    write_environment(folder, experiment.describe(), *origin)
    text = dump_resolved(experiment.recipe)
    refuse_unreadable(text, experiment.recipe)
    # Last: a folder that has it can be resumed, and one whose data never loaded is no run.
    folder.write_recipe(text)


def refuse_unreadable(text: str, recipe: Recipe) -> None:
    """Raises PluginError where what a run saves of its recipe cannot be read back, so that nothing
    could go on with it: a component whose configuration is not what it is written as."""
    try:
        again = parse_recipe(text, "the resolved recipe")
        reason = "" if again == recipe else "it is another one"
    except RecipeError as error:
        reason = str(error).partition("\n")[0]
    if reason:
        raise PluginError(
            f"what the run would save of its recipe cannot be read back: {reason}; mend the Config "
            "of the component, which `sslkit plugins check` tries"
        )


@contextmanager
def removed_on_failure(folder: RunFolder) -> Iterator[None]:
    """Leaves no folder behind of a run that could not be built."""
    try:
        yield
    except BaseException:
        if folder.writable:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def refuse_ended(state: Mapping[str, Any], facts: RunFacts, source: str) -> None:
    """Raises CheckpointError where a fork would have nothing left to train."""
    step = step_of(state, source)
    if step >= facts.total_steps:
        raise CheckpointError(
            f"{source}: is at step {step}, and this recipe ends at step "
            f"{facts.total_steps}; raise train.epochs, or take the weights with backbone.weights"
        )
