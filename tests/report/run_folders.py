"""Finished run folders with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslkit.api import Evaluation
from sslkit.evaluation.results import SuiteResult, comparison
from sslkit.recipe import dump_resolved, parse_recipe
from sslkit.runs.metrics_file import MetricLine, encode_line
from tests.conftest import TINY

STEPS_PER_EPOCH, BATCH = 6, 16


def make_run(
    parent: Path,
    name: str,
    seed: int,
    top1: float,
    *,
    baselines: Mapping[str, float] | None = None,
    speed: float = 100.0,
    during: Sequence[float] = (),
    overrides: Sequence[str] = (),
    data: str = "aaaa",
    cost: Mapping[str, float] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """A folder as a run of three epochs leaves it. top1: kNN after the last epoch. speed: images/s.
    during: kNN after the first epochs. more: protocol -> further metrics of the trained encoder."""
    recipe = parse_recipe(TINY, "tiny.yaml", [f"name={name}", f"seed={seed}", *overrides])
    path = parent / f"{name}-s{seed}-{len(list(parent.glob('*')))}"
    path.mkdir(parents=True)
    steps = STEPS_PER_EPOCH * recipe.train.epochs
    (path / "recipe.resolved.yaml").write_text(dump_resolved(recipe))
    environment = {
        "facts": {
            "batch_size": BATCH,
            "total_steps": steps,
            "steps_per_epoch": STEPS_PER_EPOCH,
        },
        "data": {"train": data, "test": "bbbb"},
        "hardware": {"host": "here", "cpu": "a processor", "gpus": []},
        "device": "cpu",
        "torch": {"num_threads": 1},
        "packages": {"torch": "2.0"},
        "plugins": {"sslkit": "0.1.0"},
        "forked_from": None,
    }
    (path / "environment.json").write_text(json.dumps(environment))
    trained = _suite({"trained": top1}, more or {})
    others = _suite(baselines or {"pixels": 0.4, "untrained": 0.3})
    rows = [row.to_json() for row in comparison(trained, others)]
    results = {"comparison": rows, "cost": cost or {"evaluation_seconds": 7.0}}
    (path / "results.json").write_text(json.dumps(results))
    lines = []
    for epoch in range(1, recipe.train.epochs + 1):
        step = epoch * STEPS_PER_EPOCH
        training = {"perf/images_per_second": speed, "perf/peak_memory_mb": 100.0 + epoch}
        lines.append(MetricLine(step, 0, training))
        if epoch <= len(during):
            lines.append(MetricLine(step, 0, {"eval/knn/top1": during[epoch - 1]}))
    lines.append(MetricLine(steps, 0, {"eval/knn/top1": top1, "eval/knn/top1_pixels": 0.4}))
    (path / "metrics.jsonl").write_text("".join(encode_line(line) for line in lines))
    return path


def _suite(
    values: Mapping[str, float], more: Mapping[str, Mapping[str, float]] | None = None
) -> SuiteResult:
    others = {protocol: Evaluation(metrics=found) for protocol, found in (more or {}).items()}
    return SuiteResult(
        evaluations={
            subject: {"knn": Evaluation(metrics={"top1": value}), **others}
            for subject, value in values.items()
        }
    )
