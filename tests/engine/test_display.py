"""Plain lines are one screen wide and say what a person wants to know."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sslkit.engine.display import WIDTH, Accuracy, Display, Silent
from sslkit.workflows.train import start


def shown(*logged: tuple[dict[str, float], int], total: int = 1950) -> list[str]:
    stream = io.StringIO()
    display = Display(stream)
    display.start(total, 0)
    for metrics, step in logged:
        display.metrics(metrics, step)
    return stream.getvalue().splitlines()


TRAINING = {
    "train/loss": 4.23123456,
    "train/lr": 0.0523456,
    "train/grad_norm": 1.2,
    "train/online_probe/top1": 0.41,
    "perf/images_per_second": 12345.6,
    "perf/data_wait_fraction": 0.01,
}


def test_a_line_of_training() -> None:
    before, line = shown((TRAINING, 250))
    assert before == "training: step 0 of 1950"
    assert line == (
        "step 250/1950 13%  loss 4.231  lr 0.05235  12,346 img/s  left 0:00:01  probe 41.0% (train)"
    )


def test_the_accuracy_is_that_of_the_last_evaluation_beside_the_best() -> None:
    lines = shown(
        ({"eval/knn/top1": 0.843, "eval/online_probe/top1": 0.9, "collapse/std": 0.91}, 500),
        ({**TRAINING}, 550),
        ({"eval/knn/top1": 0.801, "eval/online_probe/top1": 0.9}, 600),
        ({**TRAINING}, 1950),
    )
    assert lines[1] == (
        "step 500/1950 26%  knn/top1 84.3%  online_probe/top1 90.0%  collapse/std 0.91"
    )
    assert lines[2].endswith("  knn 84.3%")
    assert lines[4].endswith("12,346 img/s  knn 80.1% (best 84.3%)")


def test_every_share_is_in_percent_and_nothing_else() -> None:
    metrics = {"eval/linear/top1": 0.5, "eval/linear/mean_per_class": 0.25, "eval/linear/l2": 0.01,
               "eval/linear/selection_top1": 0.75, "eval/linear/selection_images": 100.0,
               "eval/segmentation/miou": 0.125}  # fmt: skip
    (line, more) = shown((metrics, 500))[1:]
    assert line + more == (
        "step 500/1950 26%  linear/top1 50.0%  linear/mean_per_class 25.0%  linear/l2 0.01"
        "  linear/selection_top1 75.0%  linear/selection_images 100  segmentation/miou 12.5%"
    )


def test_parts_of_a_metric_are_left_to_the_log() -> None:
    parts = {f"collapse/embedding_spread/{part}": 0.9 for part in ("z", "z/0", "z/1")}
    lines = shown(({"eval/knn/top1": 0.5, "collapse/embedding_spread": 0.8, **parts}, 500))
    assert lines[1:] == ["step 500/1950 26%  knn/top1 50.0%  collapse/embedding_spread 0.8"]


def test_no_line_is_wider_than_the_screen() -> None:
    many = {f"eval/protocol_{i}/top1": 0.5 + i / 100 for i in range(12)}
    wide = {key: 1e-7 / 3 * value for key, value in TRAINING.items()}
    lines = shown((many, 199_999), (wide, 199_999), total=200_000_000)
    assert len(lines) > 4
    assert max(map(len, lines)) <= WIDTH == 100
    assert all(name.removeprefix("eval/") in "\n".join(lines) for name in many)


def test_what_is_no_accuracy_is_not_shown_as_one() -> None:
    accuracy = Accuracy()
    accuracy.see({"eval/knn/top1_untrained": 0.3, "eval/knn/top1": float("nan"), "train/loss": 1})
    assert str(accuracy) == ""


@pytest.mark.slow  # 2 seconds
@pytest.mark.parametrize(
    ("steps", "asked", "every"), [(18, None, 1), (600, None, 50), (45, None, 4), (18, 9, 9)]
)
def test_a_short_run_logs_ten_points_unless_told_otherwise(
    tiny: Path, only_run: Callable[[], Path], steps: int, asked: int | None, every: int
) -> None:
    from sslkit.experiment.check import check
    from sslkit.experiment.resolve import resolve, settle
    from sslkit.recipe import load_recipe

    text = tiny.read_text().replace(", log_every_steps: 2", "")
    tiny.write_text(text.replace("epochs: 3", "epochs: 100"))
    overrides = [f"train.max_steps={steps}", f"train.log_every_steps={asked or 'null'}"]
    recipe = resolve(load_recipe(tiny, overrides))
    assert settle(recipe, check(recipe)).train.log_every_steps == every
    if steps > 18 or asked:
        return
    run_dir = start(str(tiny), [*overrides, "evaluate=[]"], display=Silent()).run_dir
    saved = yaml.safe_load((run_dir / "recipe.resolved.yaml").read_text())
    assert saved["train"]["log_every_steps"] == every  # law 4: what runs is written down
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "train/loss" in line["metrics"]]) >= 10
