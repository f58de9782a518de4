"""What a person does with a run: start it, go on with it, fork it, measure it again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .engine.display import Display, make_display
from .engine.failure import RECORD
from .engine.loop import evaluate_epoch, train
from .engine.memory import (
    building_needs_less,
    evaluation_needs_less,
    is_out_of_memory,
    step_needs_less,
)
from .engine.signals import StopSignals
from .errors import CheckpointError, RecipeError, SSLKitError, TrainingError, hide_logins
from .experiment import (
    Experiment,
    build,
    check,
    check_without_data,
    resolve,
)
from .interfaces import Facts, Progress, resolve_component
from .plugin_errors import describe_failure
from .plugins import load_plugins
from .recipe import Recipe, components, dump_resolved, find_recipe, load_recipe
from .recipe.advice import find_warnings, network_warnings
from .report.cost import run_cost, total_cost
from .report.report import write_report
from .report.results import FinalResults
from .saved_runs import (
    RESULTS,
    find_unfinished,
    is_finished,
    last_metrics,
    read_environment,
    read_state,
    refuse_changes,
    refuse_other_data,
    restore,
    save_encoder,
    step_of,
    was_evaluated,
    why_stopped,
)
from .suites import conditions, untrained_networks
from .tracking.environment import code_digests, describe, environment_changes
from .tracking.folder import RunFolder
from .tracking.log import RunLog, SyncResult, sync
from .tracking.metrics_file import read_lines
from .tracking.system import SystemSampler

Status = Literal["finished", "stopped"]


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    run_dir: Path
    metrics: dict[str, float]
    """The last value of each metric: `eval/knn/top1` and the like."""
    mlflow_run_id: str | None
    status: Status = "finished"
    results: FinalResults | None = None


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
) -> RunResult:
    """Starts a run, or goes on with one.

    resume: a run folder, or "auto" for the newest unfinished run of this recipe (a new one where
    there is none). fork: a run folder or checkpoint whose whole state a new run starts from. stop:
    active signals; by default they are for the time of the run."""
    if resume is not None and fork is not None:
        raise RecipeError("--resume and --fork exclude each other: give one of them")
    with nullcontext(stop) if stop is not None else StopSignals() as stop:
        stop.at_once = True  # until there is something to save
        try:
            return _start(recipe, overrides, resume, fork, display, stop)
        except KeyboardInterrupt as error:
            if stop.requested is None:
                raise ended_by_plugin(error) from error
            raise SSLKitError(
                f"stopped by {stop.requested} before the first step; nothing was kept"
                if resume is None
                else f"stopped by {stop.requested} before the first step; the run is as it was"
            ) from None
        except SystemExit as error:
            raise ended_by_plugin(error) from error


def _start(
    recipe: str | Path | None,
    overrides: Sequence[str],
    resume: str | None,
    fork: Path | None,
    display: Display,
    stop: StopSignals,
) -> RunResult:
    if resume is not None and resume != "auto":
        return resume_run(Path(resume), recipe, overrides, display, stop)
    if recipe is None:
        raise RecipeError("a recipe is needed; `sslkit recipes list` shows the shipped ones")

    loaded = resolve(load_recipe(find_recipe(recipe), overrides))
    if resume == "auto" and (unfinished := find_unfinished(loaded)) is not None:
        if (why := why_stopped(unfinished)) is not None:
            raise TrainingError(
                f"{unfinished}: {why}. It stays stopped; go on all the same (to the next "
                f"evaluation) with: sslkit run --resume {unfinished}"
            )
        display.message(f"going on with {unfinished}")
        return resume_run(unfinished, recipe, overrides, display, stop)
    state = read_state(fork) if fork is not None else None
    facts = check(loaded)
    for warning in find_warnings(loaded, facts):
        display.message(f"warning: {warning}")
    with RunFolder.create(loaded.runs_dir, loaded.name) as folder:
        with removed_on_failure(folder), explained_memory(loaded):
            experiment = build(loaded, facts, folder, display)
            for warning in network_warnings(loaded, experiment.method):
                display.message(f"warning: {warning}")
            if state is not None:
                refuse_ended(state, facts, f"{fork}")
                restore(experiment, state, f"{fork}")
                experiment.training.save()  # a resume before the next one must have a start
            write_environment(experiment, forked_from=str(fork) if fork else None)
            # Last: a folder that has it can be resumed, and one whose data never loaded is no run.
            folder.write_text(folder.recipe, dump_resolved(experiment.recipe))
        return execute(experiment, stop)


def ended_by_plugin(error: BaseException) -> SSLKitError:
    """The error for a component that ends the process, or acts as if Ctrl-C were pressed."""
    return SSLKitError(f"{describe_failure(error)}; a component must raise an error instead")


@contextmanager
def explained_memory(recipe: Recipe) -> Iterator[None]:
    """Says what to take less of where data and networks do not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise building_needs_less(recipe.train.device) from error
        raise


@contextmanager
def removed_on_failure(folder: RunFolder) -> Iterator[None]:
    """Leaves no folder behind of a run that could not be built."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise


def refuse_ended(state: Mapping[str, Any], facts: Facts, source: str) -> None:
    """Raises CheckpointError where a fork would have nothing left to train."""
    step = step_of(state, source)
    if step >= facts.total_steps:
        raise CheckpointError(
            f"{source}: is at step {step}, and this recipe ends at step "
            f"{facts.total_steps}; raise train.epochs, or take the weights with backbone.weights"
        )


def resume_run(
    path: Path,
    recipe: str | Path | None,
    overrides: Sequence[str],
    display: Display,
    stop: StopSignals,
) -> RunResult:
    """Resumes a run from its newest checkpoint, with the recipe that it was started with."""
    with RunFolder.open(path, write=True) as folder:
        if is_finished(folder.path):
            raise RecipeError(
                f"{path}: this run is finished; --fork {path} starts a new one from it"
            )
        saved = load_recipe(folder.recipe)
        wanted = resolve(load_recipe(find_recipe(recipe) if recipe else folder.recipe, overrides))
        refuse_changes(saved, wanted, path)
        facts = check_from_elsewhere(wanted, folder)
        with explained_memory(wanted):
            experiment = build(wanted, facts, folder, display)
        refuse_other_data(experiment)
        state, damaged = experiment.training.checkpoints.load_newest()
        for message in damaged:
            display.message(f"warning: {message}; going on from the checkpoint before it")
        if state is None:
            display.message(f"{path}: no checkpoint; starting from the first step again")
        else:
            restore(experiment, state, str(path))
        record_resume(experiment)
        for record in (RECORD, folder.stopped):  # of what this run is to get beyond
            (folder.path / record).unlink(missing_ok=True)
        return execute(experiment, stop)


def record_resume(experiment: Experiment) -> None:
    """Adds to the history in `environment.json`, and warns of what may change the bits."""
    folder, step = experiment.folder, experiment.training.progress.step
    saved, now = read_environment(folder.path), describe_run(experiment)
    changed = environment_changes(saved, now)
    entry = {"step": step, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "changed": changed}
    history = saved.get("history")
    saved["history"] = [*(history if isinstance(history, list) else ()), entry]
    folder.write_json(folder.environment, saved)
    if changed:
        first = [f"{name} {old} -> {new}"[:80] for name, (old, new) in list(changed.items())[:6]]
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        experiment.training.display.message(
            f"warning: {', '.join(first)}{more}: changed since this run was last started; from "
            f"step {step} on its numbers may not be those of a run without a stop"
        )


def check_from_elsewhere(recipe: Recipe, folder: RunFolder) -> Facts:
    """`check`, which adds where the run was started if the data cannot be found from here: the
    paths of a recipe count from the working folder."""
    try:
        return check(recipe)
    except RecipeError as error:
        if not folder.environment.exists():
            raise
        home = read_environment(folder.path).get("working_directory")
        if home in (None, str(Path.cwd())):
            raise
        raise RecipeError(
            *error.problems, f"{folder.path}: this run was started in {home}; resume it from there"
        ) from error


def execute(experiment: Experiment, stop: StopSignals) -> RunResult:
    """Trains and evaluates an experiment that is built, and closes its log whatever happens."""
    folder = experiment.folder
    try:
        log, results = _execute(experiment, stop)
    except KeyboardInterrupt as error:
        if stop.requested is None:
            raise ended_by_plugin(error) from error
        if not is_finished(folder.path):
            raise SSLKitError(how_to_go_on(experiment, f"{stop.requested}, at once")) from None
        experiment.training.display.message(
            f"{stop.requested} came after the run was finished: all is in {folder.path}; what its "
            f"tracker misses is sent by: sslkit sync {folder.path}"
        )
        return RunResult(folder.path, last_metrics(folder), None)
    status: Status = "stopped" if results is None else "finished"
    return RunResult(folder.path, last_metrics(folder), log.run_id, status, results)


def _execute(experiment: Experiment, stop: StopSignals) -> tuple[RunLog, FinalResults | None]:
    """The log, which is closed, and the results, or None where the run was stopped."""
    training, folder = experiment.training, experiment.folder
    results: FinalResults | None = None
    with experiment.open_log() as log:
        log.artifact(folder.recipe)
        log.artifact(folder.environment)
        try:
            with SystemSampler(log.log_system, training.runtime.device):
                stop.at_once = False
                advance(experiment, stop)
                if not stop.requested:
                    stop.at_once = True  # all is saved: nothing is lost by stopping in evaluation
                    results = finish(experiment, log)
        except KeyboardInterrupt:
            if stop.requested is None or is_finished(folder.path):
                raise  # a plugin's; or too late to change anything
        except SSLKitError:
            raise  # its message says all
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise needs_less_memory(experiment) from error
            # A plugin's, or ours: the command shows one line, the folder keeps all.
            with suppress(OSError, SSLKitError):  # a full disk must not hide what happened
                folder.write_text("traceback.txt", hide_logins(traceback.format_exc()))
            raise
        finally:
            training.display.close()
            experiment.write_unreadable()
        if results is None:
            training.display.message(how_to_go_on(experiment, stop.requested or "SIGINT"))
        log.finish("killed" if results is None else "finished")
    return log, results


def needs_less_memory(experiment: Experiment) -> TrainingError:
    """The error where memory ran out in training or in an evaluation."""
    training = experiment.training
    device = training.runtime.device
    if training.evaluating:
        return evaluation_needs_less(device)
    return step_needs_less(experiment.recipe.train, device, training.progress.step + 1)


def advance(experiment: Experiment, stop: StopSignals) -> None:
    """Trains from the current step on, after the evaluation that a stop may have cut off."""
    training = experiment.training
    progress = training.progress
    training.display.start(progress.total_steps, progress.step)
    for callback in training.callbacks:
        callback.on_start(training.run, training.method)
    if at_epoch_end(progress) and not was_evaluated(experiment.folder, progress.step):
        evaluate_epoch(training, progress.epochs_done, stop)
    train(training, stop)
    training.display.close()


def how_to_go_on(experiment: Experiment, reason: str) -> str:
    """What became of a run that was stopped, in one line."""
    training = experiment.training
    progress, saved = training.progress, training.saved_step
    if saved is None:
        kept = "nothing saved yet, so it begins again"
    else:
        kept = f"saved in {training.checkpoints.paths()[-1].name}"
        if saved < progress.step:
            kept += f", steps from {saved + 1} on are made again"
    return (
        f"stopped by {reason} at step {progress.step} of {progress.total_steps} ({kept}); "
        f"go on with: sslkit run --resume {experiment.folder.path}"
    )


def finish(experiment: Experiment, log: RunLog) -> FinalResults:
    """Measures the last epoch beside the baselines; writes encoder, results and report."""
    folder, training, suite = experiment.folder, experiment.training, experiment.suite
    encoder, layers = experiment.method.encoder, experiment.method.projection_layers
    training.display.message("evaluating the last epoch and the baselines")
    training.evaluating = True
    with training.runtime.eager():
        with suite.calibrated(encoder, layers) as seconds:  # what is measured is what is exported
            log.artifact(save_encoder(experiment))  # a tracker takes it where its recipe says so
            epochs = training.progress.epochs_done
            trained = suite.run(encoder, epochs, True, layers, calibration_seconds=seconds)
        baselines = suite.baselines(*untrained_networks(experiment.untrained()))
    for protocol, found in {**trained.warnings, **trained.stops}.items():
        training.display.message(f"warning: the last epoch: {protocol}: {found}")
    metrics = {**trained.metrics, **baselines.metrics}
    step, last = training.progress.step, [trained, baselines]
    cost = run_cost(list(read_lines(folder.metrics)), step, experiment.facts.batch_size, last)
    if metrics and not was_evaluated(folder, step):
        log.log({**metrics, **total_cost(last), **cost.metrics}, step)
        for callback in training.callbacks:
            callback.on_evaluation(training.run, metrics, training.progress)

    measured = conditions(experiment.recipe, encoder, experiment.no_untrained)
    results = FinalResults.collect(trained, baselines, cost if metrics else None, measured)
    for artifact in write_report(experiment, results):
        log.artifact(artifact, artifact.parent.relative_to(folder.path).as_posix().strip("."))
    folder.write_json(RESULTS, results.to_json())
    log.artifact(folder.path / RESULTS)
    return results


def find_problems(
    recipe: str | Path,
    overrides: Sequence[str],
    warnings: list[str] | None = None,
    *,
    data: bool = True,
) -> tuple[str, ...]:
    """What is wrong with a recipe or its data, one line each. warnings: takes what will run and is
    rarely meant. data: False looks at the recipe alone, and warns of nothing."""
    try:
        wanted = resolve(load_recipe(find_recipe(recipe), overrides))
        facts = check(wanted) if data else None
        if facts is None:
            check_without_data(wanted)
    except SSLKitError as error:
        return tuple(str(error).splitlines())
    if warnings is not None and facts is not None:
        warnings += map(str, find_warnings(wanted, facts))
    return ()


def open_ui(recipe: str | None, host: str, port: int) -> int:
    """Runs the pages of the tracker of a recipe or run folder (default: a default MLflow store),
    until they are closed. Returns the exit code."""
    registry = load_plugins().registry
    if recipe is None:
        slot = resolve_component(registry, "tracker", {"name": "mlflow"})
    else:
        path = Path(recipe)
        slot = load_recipe(
            RunFolder.open(path).recipe if path.is_dir() else find_recipe(recipe)
        ).tracking
    command = slot.build().ui_command(host, port)
    if command is None:
        raise RecipeError(f"tracking: '{slot.name}' has no pages to open")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecipeError(
                f"--host {host} --port {port}: {error.strerror}; choose another --port"
            ) from error
    pages = subprocess.Popen(command, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return pages.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        with suppress(ProcessLookupError):
            os.killpg(pages.pid, signal.SIGTERM)  # the server has workers of its own


def sync_run(run_dir: Path) -> SyncResult:
    """Sends a run's tracker what it missed. Raises RunFolderError and TrackingError."""
    with RunFolder.open(run_dir, write=True) as folder:
        return sync(folder, load_recipe(_recipe_of(folder)).tracking.build(), RESULTS)


def _recipe_of(folder: RunFolder) -> Path:
    """The recipe of a run, or of the evaluation of a weight file."""
    return folder.recipe if folder.recipe.exists() else folder.evaluation


def write_environment(experiment: Experiment, forked_from: str | None) -> None:
    """Writes `environment.json`: what the recipe does not say about this run."""
    found = describe_run(experiment) | {"forked_from": forked_from}
    experiment.folder.write_json(experiment.folder.environment, found)


def describe_run(experiment: Experiment) -> dict[str, Any]:
    """What the recipe does not say about a run, here and now."""
    stores = {"train": experiment.stores.train, "test": experiment.stores.test}
    used = [slot for _, slot in components(experiment.recipe)]
    found = describe(
        device=str(experiment.runtime.device),
        plugins={slot.distribution: slot.version for slot in used},
        data=experiment.stores.fingerprints,
    )
    modules = {"sslkit": "sslkit", **{slot.distribution: slot.cls.__module__ for slot in used}}
    return found | {
        "code": code_digests(modules),
        "facts": asdict(experiment.facts),
        "sources": {split: store.details for split, store in stores.items() if store is not None},
    }


def at_epoch_end(progress: Progress) -> bool:
    """Whether the last step done ended an epoch that is not the last."""
    return 0 < progress.step < progress.total_steps and (
        progress.step % progress.steps_per_epoch == 0
    )
