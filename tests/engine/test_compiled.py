"""A compiled run is the eager one up to rounding, and says what compiling cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslkit.engine.display import Silent
from sslkit.experiment.resolve import _missing_compiler
from sslkit.workflows.train import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_missing_compiler() is not None, reason=f"{_missing_compiler()}"),
]

LARGER = [  # bf16 convolutions of torch on a CPU are wrong on the 1 x 1 maps that 16 px end in
    "data.size=32",
    "augmentation.size=32",
    "backbone.drop_path_rate=0",
    "train.max_steps=3",
    "train.log_every_steps=1",
]


def first_loss(run_dir: Path) -> float:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next(
        float(line["metrics"]["train/loss"])
        for line in lines
        if line["step"] == 1 and "train/loss" in line["metrics"]
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_first_step_agrees_with_eager(tiny: Path, precision: str, tolerance: float) -> None:
    settings = [*LARGER, f"train.precision={precision}"]
    eager = start(str(tiny), settings, display=Silent())
    compiled = start(str(tiny), [*settings, "train.compile=true"], display=Silent())
    resolved = (compiled.run_dir / "recipe.resolved.yaml").read_text()
    assert "compile_augmentation: true" in resolved  # it follows `compile`, visibly
    assert compiled.metrics["perf/first_step_seconds"] > 0.0
    assert "perf/first_step_seconds" not in eager.metrics
    assert first_loss(compiled.run_dir) == pytest.approx(first_loss(eager.run_dir), rel=tolerance)


def test_a_compiled_run_resumes_with_the_same_bits(tiny: Path) -> None:
    from tests.engine.test_exactness import assert_same, final_state

    settings = [*LARGER, "train.compile=true", "evaluate=[]", "train.checkpoint_every_steps=1"]
    whole = start(str(tiny), [*settings, "train.keep_checkpoints=3"], display=Silent()).run_dir
    (whole / "results.json").unlink()
    expected = final_state(whole)
    (whole / "checkpoints" / "step-00000003.pt").unlink()
    resumed = start(None, [], resume=str(whole), display=Silent()).run_dir
    assert resumed == whole
    assert_same(final_state(resumed), expected)
