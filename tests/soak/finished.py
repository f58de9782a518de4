"""Whether a run that was killed on its way ended as one that was not."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sslkit.builtin.mlflow_store import chart_key

TIMED = ("perf/", "system/")
"""Measurements, which differ in every run."""


def differences(run: Path, reference: Path) -> list[str]:
    """What of a finished run is not as in the reference, to the bit; empty where all is."""
    found = _different_state(_last_checkpoint(run), _last_checkpoint(reference))
    names = [
        sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (run, reference)
    ]
    # A stop saves its step too, which then stands among those that are kept.
    if names[0][-1] != names[1][-1] or len(names[0]) != len(names[1]):
        found.append(f"the checkpoints are {names[0]}, not {names[1]}")
    if (run / "encoder.safetensors").read_bytes() != (
        reference / "encoder.safetensors"
    ).read_bytes():
        found.append("encoder.safetensors has other bytes")
    if logged(run) != logged(reference):
        found.append(f"metrics.jsonl differs: {_first_difference(logged(run), logged(reference))}")
    if _scores(run) != _scores(reference):
        found.append("results.json has other scores")
    left = [path.name for path in run.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    if left or (run / ".owner").exists():
        found.append(f"temporary files are left: {left or ['.owner']}")
    return found


def _last_checkpoint(run: Path) -> Any:
    path = max((run / "checkpoints").glob("step-*.pt"))
    return torch.load(path, weights_only=True)


def _different_state(a: Any, b: Any, where: str = "state") -> list[str]:
    """The first place at which two states differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [f"{where} has other bits"]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        parts = [_different_state(a[key], b[key], f"{where}.{key}") for key in a]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        parts = [
            _different_state(x, y, f"{where}.{i}")
            for i, (x, y) in enumerate(zip(a, b, strict=True))
        ]
    else:
        return [] if type(a) is type(b) and a == b else [f"{where}: {a!r:.50} and {b!r:.50}"]
    return next((part for part in parts if part), [])


def logged(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, values) of every line of `metrics.jsonl`, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        (line["step"], {k: v for k, v in line["metrics"].items() if not k.startswith(TIMED)})
        for line in lines
    ]
    return [(step, metrics) for step, metrics in kept if metrics]


def _first_difference(a: list[Any], b: list[Any]) -> str:
    for x, y in zip(a, b, strict=False):
        if x != y:
            return f"{str(x)[:120]} and {str(y)[:120]}"
    return f"{len(a)} and {len(b)} lines"


def _scores(run: Path) -> Any:
    """What was measured, without seconds."""

    def bare(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {
                key: bare(value)
                for key, value in tree.items()
                if not any(word in key for word in ("second", "cost", "perf", "timing"))
            }
        return [bare(value) for value in tree] if isinstance(tree, list) else tree

    return bare(json.loads((run / "results.json").read_text()))


def store_faults(store: Path, run: Path) -> list[str]:
    """Whether MLflow has every point of the run's log, once, and knows that the run is finished."""
    with closing(sqlite3.connect(store)) as database:
        runs = database.execute("SELECT run_uuid, status FROM runs").fetchall()
        rows = database.execute("SELECT key, step, value, is_nan FROM metrics").fetchall()
    found = []
    if [status for _, status in runs] != ["FINISHED"]:
        found.append(f"the store holds runs {[status for _, status in runs]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {
        (chart_key(key), line["step"]): value
        for line in lines
        for key, value in line["metrics"].items()
        if not key.startswith("system/") and math.isfinite(float(value))
    }
    stored = Counter((key, step) for key, step, _, _ in rows if not key.startswith("system/"))
    twice = [point for point, count in stored.items() if count > 1]
    if twice:
        found.append(f"the store has {len(twice)} points more than once: {twice[:3]}")
    if missing := expected.keys() - stored.keys():
        found.append(f"the store lacks {len(missing)} points: {sorted(missing)[:3]}")
    if more := stored.keys() - expected.keys():
        found.append(f"the store has {len(more)} points of no run: {sorted(more)[:3]}")
    other = [
        (key, step)
        for key, step, value, _ in rows
        if not key.startswith(TIMED) and expected.get((key, step), value) != value
    ]
    return [*found, f"the store has other values: {other[:3]}"] if other else found
