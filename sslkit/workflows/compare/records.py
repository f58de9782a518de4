"""What a comparison reads of the folder of a finished run."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sslkit.errors import CheckpointError, RunFolderError
from sslkit.evaluation.collector import named_evaluators
from sslkit.recipe import Recipe, experiment_hash, load_recipe, recipe_hash
from sslkit.report.comparison.side_by_side import SUBJECTS, Point, RunRecord, Score
from sslkit.report.cost import training_clock
from sslkit.report.final_results import main_metrics
from sslkit.runs.endings import SavedResults, SavedScore, read_results
from sslkit.runs.environment_file import SavedEnvironment, read_environment
from sslkit.runs.evaluations import is_of_weights, recipe_file
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, read_lines

_ONLINE = "train/online_probe/top1"

_WHAT_IS_MEASURED = frozenset({"every_epochs", "baselines"})
"""Fields of every evaluator that say when and on what it measures, and change no number."""


def read_run(path: Path) -> RunRecord:
    """Reads a run folder, or the folder in which `sslkit eval` keeps what weights came to.

    Raises RunFolderError where the run is not finished or its files are not those of a run, and
    RecipeError where its recipe cannot be read any more."""
    folder = RunFolder.open(path)
    if is_of_weights(folder):
        return _read_weights(folder)
    results = _results(folder, f"go on with: sslkit run --resume {path}")
    environment = _environment(folder).values
    recipe = load_recipe(folder.recipe)
    lines = list(read_lines(folder.metrics))
    try:
        facts = environment["facts"]
        batch, total = int(facts["batch_size"]), int(facts["total_steps"])
        if environment.get("forked_from") is not None:
            raise RunFolderError(
                f"{path}: was forked from {environment['forked_from']}, so it is no repetition of "
                "its recipe; compare runs from the first step on"
            )
        clock = training_clock(lines, batch)
        scores = _scores(results.scores)
        _refuse_unlogged(folder, scores, lines)
        return RunRecord(
            path=folder.path,
            recipe=recipe,
            hash=experiment_hash(recipe, SavedEnvironment(path, environment).files),
            data=dict(environment["data"]),
            steps=total,
            epochs=total / int(facts["steps_per_epoch"]),
            images_seen=total * batch,
            scores=scores,
            curves=_curves(lines, {*scores, _ONLINE}, clock, int(facts["steps_per_epoch"])),
            training_seconds=clock[-1][1],
            evaluation_seconds=results.evaluation_seconds,
            images_per_second=_reduce(median, lines, "perf/images_per_second"),
            peak_memory_mb=_reduce(max, lines, "perf/peak_memory_mb"),
            machine=_machine(environment),
            versions=_versions(environment),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunFolderError(
            f"{path}: its files are not those of this version ({type(error).__name__}: {error})"
        ) from error


def _read_weights(folder: RunFolder) -> RunRecord:
    """Weights that were measured and not trained here; they are called what their folder is."""
    results = _results(folder, "measure the weights again")
    environment = _environment(folder).values
    recipe = load_recipe(recipe_file(folder))
    name = folder.path.name.removesuffix(f"-{folder.id}")
    recipe = recipe.model_copy(update={"name": name})
    try:
        scores = _scores(results.scores)
        _refuse_unlogged(folder, scores, read_lines(folder.metrics))
        return RunRecord(
            path=folder.path,
            recipe=recipe,
            hash=recipe_hash(recipe),
            data=dict(environment["data"]),
            steps=0,
            epochs=0.0,
            images_seen=0,
            scores=scores,
            curves={},
            training_seconds=0.0,
            evaluation_seconds=None,
            images_per_second=None,
            peak_memory_mb=None,
            machine=_machine(environment),
            versions=_versions(environment),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{folder.path}: its files are not those of this version "
            f"({type(error).__name__}: {error})"
        ) from error


def _versions(environment: Mapping[str, Any]) -> dict[str, str]:
    packages = environment["packages"]
    return {
        **{name: packages.get(name, "-") for name in ("torch", "timm")},
        **environment["plugins"],
    }


def protocol_settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Evaluator -> the fields that its numbers depend on."""
    built = named_evaluators([(slot.name, slot.build()) for slot in recipe.evaluate])
    settings = {
        protocol.key: {
            key: value for key, value in slot.dump().items()
            if key not in slot.cls.changes_no_metric | _WHAT_IS_MEASURED
        }
        for protocol, slot in zip(built, recipe.evaluate, strict=True)
    }  # fmt: skip
    probe = recipe.train.online_probe
    return {**settings, **({"online_probe": probe.model_dump(mode="json")} if probe else {})}


def seconds_at(clock: Sequence[tuple[int, float]], step: int) -> float:
    """Seconds of training up to a step, linear between the log steps of `training_clock`."""
    steps = [at for at, _ in clock]
    place = bisect_left(steps, step)
    if place >= len(clock):
        return clock[-1][1]
    after, seconds = clock[place]
    if after == step:
        return seconds
    before, earlier = clock[place - 1]
    return earlier + (seconds - earlier) * (step - before) / (after - before)


def _scores(rows: Sequence[SavedScore]) -> dict[str, Score]:
    metrics: dict[str, list[str]] = {}
    for row in rows:
        metrics.setdefault(row.evaluator, []).append(row.metric)
    scores = {}
    for row in rows:
        values = {subject: found.value for subject, found in row.values.items() if found}
        if row.metric in main_metrics(metrics[row.evaluator]) and "trained" in values:
            others = {subject: values.get(subject) for subject in SUBJECTS}
            scores[f"eval/{row.evaluator}/{row.metric}"] = Score(values["trained"], **others)
    return scores


def _refuse_unlogged(
    folder: RunFolder, scores: Mapping[str, Score], lines: Iterable[MetricLine]
) -> None:
    """Raises RunFolderError where a score is none of those that were logged under its name: a
    number in one of the two files was changed, or one of them is another run's."""
    wanted = {
        key if subject == "trained" else f"{key}_{subject}": value
        for key, score in scores.items()
        for subject, value in vars(score).items()
        if value is not None
    }
    logged: dict[str, set[float]] = {}
    for line in lines:
        for key in line.metrics.keys() & wanted.keys():
            logged.setdefault(key, set()).add(line.metrics[key])
    for key, values in logged.items():
        if wanted[key] not in values:
            raise RunFolderError(
                f"{folder.path}: {folder.results.name} has {key} {wanted[key]:.6g}, which was "
                f"never logged ({folder.metrics.name} has {max(values):.6g}); one of the two files "
                "was changed: take the folder as the run left it, or run the recipe again"
            )


def _curves(
    lines: Iterable[MetricLine],
    wanted: Container[str],
    clock: Sequence[tuple[int, float]],
    steps_per_epoch: int,
) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for line in lines:
        for key, value in line.metrics.items():
            if key in wanted and math.isfinite(value):
                seconds = seconds_at(clock, line.step)
                point = Point(line.step, line.step / steps_per_epoch, seconds, value)
                curves.setdefault(key, []).append(point)
    return curves


def _reduce(function: Any, lines: Iterable[MetricLine], key: str) -> float | None:
    found = (line.metrics[key] for line in lines if key in line.metrics)
    values = [value for value in found if math.isfinite(value)]
    return float(function(values)) if values else None


def _machine(environment: Mapping[str, Any]) -> str:
    hardware, device = environment["hardware"], str(environment["device"])
    gpus = hardware.get("gpus") or []
    threads = environment.get("torch", {}).get("num_threads")
    name = (
        gpus[0] if device.startswith("cuda") and gpus else f"{hardware['cpu']}, {threads} threads"
    )
    return f"{device}: {name}"


def _results(folder: RunFolder, advice: str) -> SavedResults:
    try:
        return read_results(folder)
    except FileNotFoundError:
        raise RunFolderError(
            f"{folder.path}: is no finished run, {folder.results.name} is missing; {advice}"
        ) from None


def _environment(folder: RunFolder) -> SavedEnvironment:
    try:
        return read_environment(folder.path)
    except CheckpointError as error:
        raise RunFolderError(str(error)) from error
