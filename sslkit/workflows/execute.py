"""An experiment that is built is trained, evaluated and reported."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslkit.api import Progress
from sslkit.engine.loop import evaluate_epoch, log_numbers, train
from sslkit.engine.memory import (
    building_needs_less,
    evaluation_needs_less,
    is_out_of_memory,
    step_needs_less,
)
from sslkit.engine.signals import StopSignals
from sslkit.engine.training import NoLog
from sslkit.errors import RankError, SSLKitError, TrainingError
from sslkit.evaluation.results import SuiteResult
from sslkit.experiment.build import Experiment
from sslkit.experiment.encoder import save_encoder
from sslkit.experiment.measuring import conditions
from sslkit.host.plugin_errors import describe_failure
from sslkit.recipe import Recipe
from sslkit.report.cost import run_cost, total_cost
from sslkit.report.final_results import FinalResults
from sslkit.report.report import write_report
from sslkit.runs.endings import is_finished, write_results, write_traceback
from sslkit.runs.metrics_file import read_lines
from sslkit.runs.state import last_metrics, was_evaluated, was_logged
from sslkit.tracking.log import RunLog
from sslkit.tracking.system import SystemSampler

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
    speaks: bool = True
    """Whether this process tells the user, as one of several does."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON; the results have a file of their own."""
        return {
            "run_dir": str(self.run_dir),
            "status": self.status,
            "mlflow_run_id": self.mlflow_run_id,
            "metrics": self.metrics,
        }


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


def execute(experiment: Experiment, stop: StopSignals) -> RunResult:
    """Trains and evaluates an experiment that is built, and closes its log whatever happens."""
    folder = experiment.folder
    try:
        log, results = _execute(experiment, stop)
    except RankError as error:
        raise RankError(how_to_go_on(experiment, f"{error}; stopped")) from error
    except KeyboardInterrupt as error:
        if stop.requested is None:
            raise ended_by_plugin(error) from error
        if not is_finished(folder.path):
            raise SSLKitError(
                how_to_go_on(experiment, f"stopped by {stop.requested}, at once,")
            ) from None
        experiment.training.output.display.message(
            f"{stop.requested} came after the run was finished: all is in {folder.path}; what its "
            f"tracker misses is sent by: sslkit sync {folder.path}"
        )
        return RunResult(folder.path, last_metrics(folder), None)
    status: Status = "stopped" if results is None else "finished"
    speaks = experiment.compute.world.is_first
    return RunResult(folder.path, last_metrics(folder), log.run_id, status, results, speaks)


def _execute(
    experiment: Experiment, stop: StopSignals
) -> tuple[RunLog | NoLog, FinalResults | None]:
    """The log, which is closed, and the results, or None where the run was stopped."""
    training, folder, world = experiment.training, experiment.folder, experiment.compute.world
    results: FinalResults | None = None
    with experiment.open_log() as log:
        log.artifact(folder.recipe)
        log.artifact(folder.environment)
        try:
            with (
                SystemSampler(log.log_system, training.compute.device),
                world.passing_on(lambda: stop.got, stop.hear),
            ):
                stop.at_once = False
                advance(experiment, stop)
                if not stop.agree(world):
                    results = finish(experiment, log, stop)
                    stop.at_once = world.is_first  # all is saved
        except KeyboardInterrupt:
            elsewhere = stop.requested is None and not world.is_first  # rank 0 was stopped
            if (stop.requested is None and not elsewhere) or is_finished(folder.path):
                raise  # a plugin's; or too late to change anything
        except SSLKitError:
            raise  # its message says all
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise needs_less_memory(experiment) from error
            # A plugin's, or ours: the command shows one line, the folder keeps all.
            # A full disk must not hide what happened; only rank 0 may write.
            with suppress(OSError, SSLKitError, RuntimeError):
                write_traceback(folder, traceback.format_exc())
            raise
        finally:
            training.output.display.close()
            unreadable = experiment.write_unreadable()
        for text in unreadable:
            training.output.display.message(f"warning: {text}")
        if results is None:
            what = f"stopped by {stop.requested or 'SIGINT'}"
            training.output.display.message(how_to_go_on(experiment, what))
        log.finish("killed" if results is None else "finished")
    return log, results


def needs_less_memory(experiment: Experiment) -> TrainingError:
    """The error where memory ran out in training or in an evaluation."""
    training = experiment.training
    device = training.compute.device
    if training.evaluating:
        return evaluation_needs_less(device)
    return step_needs_less(experiment.recipe.train, device, training.progress.step + 1)


def advance(experiment: Experiment, stop: StopSignals) -> None:
    """Trains from the current step on, after the evaluation that a stop may have cut off."""
    training = experiment.training
    progress = training.progress
    training.output.display.start(progress.total_steps, progress.step)
    training.output.callbacks.on_start(training)
    if at_epoch_end(progress) and not experiment.compute.world.once(
        lambda: was_evaluated(experiment.folder, progress.step)
    ):
        evaluate_epoch(training, progress.epochs_done, stop)
    train(training, stop)
    training.output.display.close()


def how_to_go_on(experiment: Experiment, what: str) -> str:
    """What became of a run that was stopped, in one line."""
    training = experiment.training
    progress, paths = training.progress, training.output.checkpoints.paths()
    # What is there, and not what was begun: rank 0 may have saved unheard, or be at it.
    if not paths:
        kept = "nothing saved yet, so it begins again"
    else:
        kept = f"saved in {paths[-1].name}"
        saved = int(paths[-1].stem.removeprefix("step-"))
        if saved < progress.step:
            kept += f", steps from {saved + 1} on are made again"
    return (
        f"{what} at step {progress.step} of {progress.total_steps} ({kept}); "
        f"go on with: sslkit run --resume {experiment.folder.path}"
    )


def finish(experiment: Experiment, log: RunLog | NoLog, stop: StopSignals) -> FinalResults:
    """Measures the last epoch beside the baselines, on all ranks; writes encoder, results and
    report, on rank 0. The others are told the numbers."""
    training, written = experiment.training, list[FinalResults]()
    training.output.display.message("evaluating the last epoch and the baselines")
    training.evaluating = True
    with experiment.evaluation.stopped_by(stop) as work:
        with training.compute.eager():
            trained, baselines = experiment.evaluation.run_last(
                training.progress.epochs_done,
                lambda: log.artifact(save_encoder(experiment)),  # which may log it
                experiment.untrained,
            )
        work.once(lambda: written.append(write_findings(experiment, log, trained, baselines)))
    return written[0] if written else FinalResults.collect(trained, baselines)


def write_findings(
    experiment: Experiment, log: RunLog | NoLog, trained: SuiteResult, baselines: SuiteResult
) -> FinalResults:
    """Logs and writes what a run came to."""
    folder, training, encoder = experiment.folder, experiment.training, experiment.method.encoder
    for protocol, found in {**trained.warnings, **trained.stops}.items():
        training.output.display.message(f"warning: the last epoch: {protocol}: {found}")
    metrics = {**trained.metrics, **baselines.metrics}
    step, last = training.progress.step, [trained, baselines]
    cost = run_cost(list(read_lines(folder.metrics)), step, experiment.facts.batch_size, last)
    if metrics and not was_logged(folder, step, metrics):
        log.log({**metrics, **total_cost(last), **cost.metrics}, step)
        log_numbers(training, training.output.callbacks.on_evaluation(training, metrics))

    measured = conditions(
        experiment.recipe, encoder, experiment.facts.sample, experiment.no_untrained
    )
    results = FinalResults.collect(trained, baselines, cost if metrics else None, measured)
    recipe, facts = experiment.recipe, experiment.facts
    notes = (*facts.data_notes, *experiment.stores.train.notes)
    for artifact in write_report(folder, recipe, facts, results, notes):
        log.artifact(artifact, artifact.parent.relative_to(folder.path).as_posix().strip("."))
    log.artifact(write_results(folder, results.to_json()))
    return results


def at_epoch_end(progress: Progress) -> bool:
    """Whether the last step done ended an epoch that is not the last."""
    return 0 < progress.step < progress.total_steps and (
        progress.step % progress.steps_per_epoch == 0
    )
