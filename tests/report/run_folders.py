"""Finished run folders with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslkit.api import Evaluation
from sslkit.evaluation.results import SuiteResult, comparison
from sslkit.recipe import dump_resolved, parse_recipe
from sslkit.report.comparison.side_by_side import Arm
from sslkit.runs.metrics_file import MetricLine, encode_line
from sslkit.workflows.compare.records import read_run
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
    files: Mapping[str, str] | None = None,
) -> Path:
    """A folder as a run of three epochs leaves it. top1: kNN after the last epoch. speed: images/s.
    during: kNN after the first epochs. more: further metrics of the trained encoder, by evaluator.
    """
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
        "files": files or {},
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


A, B = (0.50, 0.52, 0.57), (0.55, 0.58, 0.59)
"""Accuracies of the seeds of `make_two_arms`."""
IMAGES = 18 * 16
"""Images that each run has seen."""


def arm(label: str, folders: Sequence[Path]) -> Arm:
    """An arm of finished runs."""
    return Arm(label, [read_run(path) for path in folders])


def make_two_arms(tmp_path: Path) -> list[Arm]:
    """Three seeds each; `b` trains at half the speed, and both were measured after each epoch."""
    first = [make_run(tmp_path, "a", seed, top1, speed=100, during=(0.2, 0.3),
                      baselines={"pixels": 0.4, "untrained": 0.3 + seed / 100})
             for seed, top1 in enumerate(A)]  # fmt: skip
    second = [make_run(tmp_path, "b", seed, top1, speed=50, during=(0.30 + seed / 100, 0.45))
              for seed, top1 in enumerate(B)]  # fmt: skip
    return [arm("a", first), arm("b", second)]
