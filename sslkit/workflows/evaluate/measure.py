"""The measurement itself, and what it comes to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.api import Method, RunFacts
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display
from sslkit.experiment.measuring import conditions, make_suites, untrained_networks
from sslkit.experiment.networks import (
    initial_method,
    say_missing_untrained,
    without_starting_weights,
)
from sslkit.experiment.resolve import make_compute
from sslkit.experiment.stores import Stores
from sslkit.parallel.world import OneProcess
from sslkit.recipe import CommandOverride, Recipe, read_field
from sslkit.report.final_results import FinalResults


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, and where it is kept."""

    results: FinalResults
    kept: Path | None
    """A file in the run's folder, or a folder of its own; None where it cannot be written."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kept": str(self.kept) if self.kept else None, **self.results.to_json()}


def measure(
    recipe: Recipe,
    facts: RunFacts,
    stores: Stores,
    method: Method,
    display: Display,
    *,
    weights: bool = False,
    calibration: CachedSplit | None = None,
) -> FinalResults:
    """A trained and the untrained method with the evaluators of the recipe, the trained one with
    the batch statistics that it has. weights: whether only the encoder is trained, by someone else.
    calibration: the images whose batch statistics the trained one has, and the untrained one is to
    have; None: those of the recipe."""
    missing = say_missing_untrained(recipe, facts, display)
    compute = make_compute(recipe.train, OneProcess())
    compute.prepare(method)
    suite = make_suites(recipe, compute, stores, method, calibration=calibration)
    trained = suite.run(method.encoder, 0, True, () if weights else method.projection_layers)
    untrained = None
    if missing is None:
        untrained = initial_method(without_starting_weights(recipe), facts, compute, whole=False)
    networks = untrained_networks(untrained, with_projection=not weights)
    measured = conditions(recipe, method.encoder, facts.sample, missing, given=weights)
    return FinalResults.collect(trained, suite.baselines(*networks), conditions=measured)


def metrics_of(results: FinalResults) -> Mapping[str, float]:
    """Every metric of an evaluation, by its full key."""
    return {**results.trained.metrics, **results.baselines.metrics}


def protocol_overrides(recipe_file: Path, protocols: Sequence[str] | None) -> list[str]:
    """Overrides that leave these evaluators in a recipe: with its settings where it has them, with
    defaults where it has not."""
    if protocols is None:
        return []
    listed = read_field(recipe_file, "evaluate")
    blocks = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    known = {block.get("name"): block for block in reversed(blocks)}
    chosen = [known.get(name, {"name": name}) for name in protocols]
    return [CommandOverride(f"evaluate={json.dumps(chosen)}", f"--protocol {','.join(protocols)}")]
