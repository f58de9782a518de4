"""What the table of methods says of an arm beside its scores: what it was given, and its cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sslkit.recipe import find_recipe, load_recipe
from sslkit.runs.metrics_file import SYSTEM_PREFIX, read_lines

_CPU = f"{SYSTEM_PREFIX}process_cpu_percent"
_SAMPLED_MS = 10_000
"""A run notes how busy its process was every so often, for the time since it last did."""
_POOLS = {"token": "class token", "avg": "mean of patches", None: "mean of the map"}


def given(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The network, features, views and precision of a recipe with its overrides, for readers."""
    loaded = load_recipe(find_recipe(recipe), overrides)
    backbone = loaded.backbone.dump()
    views = Counter(f"{view.size} px" for view in loaded.augmentation.build().views)
    drawn = " + ".join(f"{count} x {size}" for size, count in views.items())
    return {
        "backbone": backbone["model"],
        "features": _POOLS[backbone["pool"]],
        "views": f"{drawn}, {loaded.augmentation.name}",
        "precision": loaded.train.precision,
    }


def training_cpu_seconds(run: Path) -> float | None:
    """CPU seconds of a run's process, all threads, until its last step; by what it noted on its
    way, to about a second. None: it was over before it noted anything."""
    lines = list(read_lines(run / "metrics.jsonl"))
    end = max(line.time_ms for line in lines if "train/loss" in line.metrics)
    busy, noted = 0.0, False
    for line in lines:
        start = line.time_ms - _SAMPLED_MS
        if _CPU in line.metrics and start < end:
            busy += line.metrics[_CPU] / 100 * (min(line.time_ms, end) - start) / 1000
            noted = True
    return busy if noted else None


def commit(run: Path) -> str:
    """The commit of the code that a run was made with, marked where files differed from it."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    code = environment["git"]
    return f"{code['commit'][:8]}{' with changes' if code['dirty'] else ''}"


def is_made_with(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run's recipe has these values, dotted path -> value as of an override."""
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    for path, value in settings.items():
        found = recipe
        for part in path.split("."):
            found = found[part]
        if not _equal(found, value):
            return False
    return True


def _equal(found: Any, value: Any) -> bool:
    try:
        return float(found) == float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        return bool(found == value)
