"""The cost of the evaluation of a run, from its log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sslkit.engine.display import Silent
from sslkit.evaluation.results import COST, SuiteResult
from sslkit.report.cost import run_cost, total_cost
from sslkit.runs.metrics_file import MetricLine, read_lines
from sslkit.workflows.train import start


def line(step: int, **metrics: float) -> MetricLine:
    return MetricLine(step, 0, {key.replace("__", "/"): value for key, value in metrics.items()})


def suite_result(**timings: float) -> SuiteResult:
    parts = {key.replace("__", "/"): value for key, value in timings.items()}
    return SuiteResult(seconds=sum(timings.values()), timings=parts)


def test_training_and_evaluation_add_up() -> None:
    during = suite_result(features__trained=2.0, knn__trained=1.0)
    last = [
        suite_result(features__trained=2.0, knn__trained=1.0, linear__trained=5.0),
        suite_result(features__pixels=1.0, features__untrained=2.0, knn__pixels=4.0),
    ]
    lines = [
        line(10, perf__images_per_second=100.0),
        MetricLine(15, 0, during.cost),
        line(20, perf__images_per_second=50.0),
        MetricLine(20, 0, total_cost(last)),  # logged before a stop: not counted twice
    ]
    cost = run_cost(lines, last_step=20, batch_size=10, last=last)
    assert cost.training == pytest.approx(10 * 10 / 100 + 10 * 10 / 50)
    assert cost.evaluation == pytest.approx(3.0 + 8.0 + 7.0)
    assert dict(cost.parts) == {"features": 7.0, "knn": 6.0, "linear": 5.0}
    assert cost.share == pytest.approx(18 / 21)
    assert "86% of the run: 18.0 s beside 3.0 s" in cost.sentence()
    json.dumps(cost.to_json(), allow_nan=False)


def test_nothing_measured_is_no_share() -> None:
    cost = run_cost([], last_step=5, batch_size=8, last=[])
    assert math.isnan(cost.share)
    assert cost.to_json()["evaluation_share"] is None


@pytest.mark.slow  # 2 seconds
def test_a_run_logs_and_reports_its_cost(tiny: Path) -> None:
    result = start(str(tiny), [], display=Silent())
    lines = list(read_lines(result.run_dir / "metrics.jsonl"))
    evaluated = [(line.step, line.metrics) for line in lines if COST in line.metrics]
    assert [step for step, _ in evaluated] == [6, 12, 18]
    for _, metrics in evaluated:
        parts = [value for key, value in metrics.items() if key.startswith(f"{COST}_")]
        assert {f"{COST}_features", f"{COST}_knn", f"{COST}_online_probe"} <= set(metrics)
        assert 0.0 < sum(parts) <= metrics[COST] * 1.001
    saved = json.loads((result.run_dir / "results.json").read_text())["cost"]
    assert saved["evaluation_seconds"] == pytest.approx(sum(m[COST] for _, m in evaluated))
    assert 0.0 < saved["evaluation_share"] < 1.0
    assert result.metrics["perf/evaluation_share"] == pytest.approx(saved["evaluation_share"])
    assert "Evaluation took" in (result.run_dir / "report.md").read_text()
