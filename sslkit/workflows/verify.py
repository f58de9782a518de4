"""`sslkit verify`: a run held against what its recipe expects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.engine.display import Display
from sslkit.errors import RecipeError, SSLKitError
from sslkit.experiment.resolve import resolve
from sslkit.parallel.finding import require_one_process
from sslkit.recipe import Expectation, Recipe, find_recipe, load_recipe, recipe_hash
from sslkit.runs.endings import is_finished
from sslkit.runs.folder import RunFolder
from sslkit.runs.state import last_metrics
from sslkit.workflows.train import start


@dataclass(frozen=True)
class Check:
    """One expectation and what was measured."""

    metric: str
    expected: Expectation
    measured: float | None
    """None where the run has no such metric."""

    @property
    def shortfall(self) -> float | None:
        """How far the value lies outside its range; 0 inside, None where nothing was measured."""
        if self.measured is None or math.isnan(self.measured):
            return None
        low = -math.inf if self.expected.at_least is None else self.expected.at_least
        high = math.inf if self.expected.at_most is None else self.expected.at_most
        return max(low - self.measured, self.measured - high, 0.0)

    @property
    def met(self) -> bool:
        return self.shortfall == 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            **self.expected.model_dump(),
            "measured": self.measured,
            "shortfall": self.shortfall,
            "met": self.met,
        }


@dataclass(frozen=True)
class Verification:
    """Every expectation of a recipe."""

    run_dir: Path
    checks: Sequence[Check]

    @property
    def met(self) -> bool:
        return all(check.met for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "met": self.met,
            "expectations": [check.to_json() for check in self.checks],
        }


def verify(
    recipe: str | None,
    overrides: Sequence[str] = (),
    *,
    run: Path | None = None,
    display: Display,
) -> Verification:
    """Runs a recipe, or takes a finished run, and checks what the recipe expects. A run without a
    recipe is held against its own.

    Raises RecipeError where nothing is expected, or the run is one of another recipe."""
    require_one_process()
    if run is None:
        if recipe is None:
            raise RecipeError("a recipe is needed, or --run with a finished run")
        wanted = load_recipe(find_recipe(recipe), overrides)
        refuse_nothing(wanted, recipe)
        result = start(recipe, overrides, display=display)
        if result.status != "finished":
            raise SSLKitError(f"{result.run_dir}: stopped before its end; nothing was verified")
        return Verification(result.run_dir, checks(wanted, result.metrics))
    folder = RunFolder.open(run)
    if not is_finished(folder.path):
        raise RecipeError(f"{run}: is not finished; go on with: sslkit run --resume {run}")
    saved = load_recipe(folder.recipe)
    if recipe is None and overrides:
        raise RecipeError("-o changes a recipe, and only --run was given")
    wanted = saved if recipe is None else load_recipe(find_recipe(recipe), overrides)
    if recipe is not None and recipe_hash(resolve(wanted)) != recipe_hash(saved):
        raise RecipeError(
            f"{run}: is a run of another recipe than {recipe} (hash {recipe_hash(saved)} and "
            f"{recipe_hash(resolve(wanted))}); leave the recipe out, or run it"
        )
    refuse_nothing(wanted, recipe or str(run))
    return Verification(folder.path, checks(wanted, last_metrics(folder)))


def refuse_nothing(recipe: Recipe, source: str) -> None:
    """Raises RecipeError where a recipe expects nothing."""
    if not recipe.expect:
        raise RecipeError(
            f"{source}: expects nothing; add what was measured, such as "
            "expect: {eval/knn/top1: {at_least: 0.57}}"
        )


def checks(recipe: Recipe, metrics: Mapping[str, float]) -> list[Check]:
    """The expectations in the order of the recipe."""
    return [Check(key, expected, metrics.get(key)) for key, expected in recipe.expect.items()]
