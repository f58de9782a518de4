"""`sslkit runs list` and `best`: looking through run folders. Reads no checkpoint and imports no
torch."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from math import isnan
from pathlib import Path
from typing import Any, Literal

from sslkit.errors import RecipeError, RunFolderError
from sslkit.evaluation.scores import better
from sslkit.runs.search import search_runs
from sslkit.runs.summary import STATES, RunSummary, Value, summarise

PLACES = (Path("runs"), Path("comparisons"))
"""Where runs are made by default, by `run` and by `compare`."""
SORTED_BY = ("age", "name", "step")
_SHOWN, _GUESSES = 8, 3


@dataclass(frozen=True)
class RunQuery:
    """Which runs are meant."""

    places: Sequence[Path] = ()
    """Folders that are looked through; none: those of PLACES that are there."""
    states: Sequence[str] = ()
    where: Sequence[str] = ()
    """`FIELD=VALUE` of the resolved recipe, all of which must hold."""
    name: str | None = None
    """A pattern of shells for the name of the folder."""

    def find(self) -> list[RunSummary]:
        """The runs that are meant, the newest first. Raises RunFolderError where there is no such
        folder, RecipeError for a state or field that no run can have."""
        if unknown := [state for state in self.states if state not in STATES]:
            raise RecipeError(f"--state: got {unknown[0]!r:.40}; valid is {', '.join(STATES)}")
        wanted = [_condition(text) for text in self.where]
        found = [summarise(path) for path in self.paths()]
        for field, _ in wanted:
            _require_field(field, found)
        return newest_first(
            run for run in found
            if (not self.states or run.state in self.states)
            and (self.name is None or fnmatchcase(run.path.name, self.name))
            and all(_is_equal(run.recipe.get(field, _NO_FIELD), text) for field, text in wanted)
        )  # fmt: skip

    def paths(self) -> list[Path]:
        """The run folders below the places, each once."""
        found = (path for place in self.existing_places() for path in search_runs(place))
        return list(dict.fromkeys(path.absolute() for path in found))

    def existing_places(self) -> list[Path]:
        """The folders that are looked through. Raises RunFolderError where there is none."""
        places = list(self.places) or [place for place in PLACES if place.is_dir()]
        if not places:
            here = " or ".join(f"{place}/" for place in PLACES)
            raise RunFolderError(f"no {here} in {Path.cwd()}; name the folder of the runs")
        return places


def newest_first(runs: Iterable[RunSummary]) -> list[RunSummary]:
    """By when they began; those of one second by name."""
    ordered = sorted(runs, key=lambda run: run.path.name)
    return sorted(ordered, key=_began, reverse=True)


def sort_runs(runs: Sequence[RunSummary], by: str) -> list[RunSummary]:
    """By `age` (the newest first), `name`, `step` (the furthest first) or a metric, the best first
    where that is known, otherwise the highest; runs that lack it come last. Raises RecipeError for
    a metric that none of them has."""
    if by == "age" or not runs:
        return list(runs)
    if by == "name":
        return sorted(runs, key=lambda run: run.path.name)
    if by == "step":
        return sorted(runs, key=lambda run: -run.step)
    require_metric(by, runs, "--sort", SORTED_BY)
    sign = 1 if better(by) == "lowest" else -1
    return sorted(runs, key=lambda run: (by not in measured(run), sign * measured(run).get(by, 0)))


def measured(run: RunSummary) -> dict[str, float]:
    """Its metrics that are numbers."""
    return {key: value for key, value in run.metrics.items() if not isnan(value)}


# --- The best of them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BestRun:
    """The finished run that is best by one metric."""

    run: RunSummary
    metric: str
    direction: Literal["highest", "lowest"]
    among: int
    """Finished runs that have the metric."""
    ties: int
    """Further runs with the same value, which began later."""

    @property
    def value(self) -> float:
        return self.run.metrics[self.metric]

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "value": self.value,
            "among": self.among,
            "ties": self.ties,
            "run": run_to_json(self.run),
        }


def best_run(
    query: RunQuery, metric: str, direction: Literal["highest", "lowest"] | None = None
) -> BestRun:
    """The best finished run of those that are meant. direction: which value is the best; by default
    that of losses and costs the lowest, of scores the highest.

    Raises RecipeError where no finished run has the metric, or its direction is not known."""
    runs = [run for run in query.find() if run.state == "finished"]
    if not runs:
        raise RunFolderError("no finished run among them; sslkit runs list shows what there is")
    require_metric(metric, runs, "METRIC")
    direction = direction or better(metric)
    if direction is None:
        raise RecipeError(
            f"{metric}: whether more or less of it is better is not known; add "
            "--direction highest, or lowest"
        )
    having = [run for run in reversed(runs) if metric in measured(run)]  # the oldest first
    choose = max if direction == "highest" else min
    best = choose(having, key=lambda run: run.metrics[metric])
    same = sum(run.metrics[metric] == best.metrics[metric] for run in having)
    return BestRun(best, metric, direction, len(having), same - 1)


def require_metric(
    metric: str, runs: Iterable[RunSummary], option: str, others: Sequence[str] = ()
) -> None:
    """Raises RecipeError, with those that are like it, where no run has a metric."""
    known = Counter(key for run in runs for key in measured(run))
    if metric in known:
        return
    evaluated = [key for key, _ in known.most_common() if key.startswith("eval/")]
    guesses = difflib.get_close_matches(metric, known, n=3) or [
        key for key in evaluated if metric and metric.lower() in key
    ]
    guess = f", did you mean {' or '.join(guesses[:_GUESSES])}?" if guesses else ";"
    listed = ", ".join([*others, *evaluated[:_SHOWN]]) or "nothing: none has a metric"
    more = f", and {len(evaluated) - _SHOWN} more" if len(evaluated) > _SHOWN else ""
    raise RecipeError(
        f"{option}: none of these runs has {metric!r:.80}{guess} valid is {listed}{more}"
    )


# --- Conditions -----------------------------------------------------------------------------------

_NO_FIELD = "\0"
"""Equal to no value: a recipe holds no such character."""


def _condition(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        raise RecipeError(
            f"--where: got {text!r:.80}; expected FIELD=VALUE, such as method.name=byol"
        )
    return field.strip(), value.strip()


def _require_field(field: str, runs: Sequence[RunSummary]) -> None:
    known = {key for run in runs for key in run.recipe}
    if field not in known and known:
        alike = difflib.get_close_matches(field, known, n=3)
        hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
        raise RecipeError(f"--where: no recipe of these runs has a field {field!r:.80}{hint}")


def _is_equal(value: Value, text: str) -> bool:
    """Whether a value is what is written: `0.50` is 0.5, `null` is None."""
    if value is None or isinstance(value, bool):
        return text.lower() == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value == text
    try:
        return float(text) == value
    except ValueError:
        return False


# --- As JSON --------------------------------------------------------------------------------------


def run_to_json(run: RunSummary) -> dict[str, Any]:
    """A run as one entry of a JSON document."""
    return {
        "path": str(run.path),
        "name": run.path.name,
        "state": run.state,
        "why": run.why,
        "owner": run.owner,
        "began": _moment(run.began),
        "changed": _moment(run.changed),
        "step": run.step,
        "total_steps": run.total_steps,
        "method": run.recipe.get("method.name"),
        "seed": run.recipe.get("seed"),
        "recipe_hash": run.recipe_hash,
        "processes": run.processes,
        "metrics": dict(run.metrics),
    }


def _moment(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _began(run: RunSummary) -> datetime:
    return run.began or datetime.min.replace(tzinfo=UTC)
