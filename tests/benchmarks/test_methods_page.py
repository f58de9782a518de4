"""The page, CSV and figure of the table of methods, from results whose numbers are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sslkit.runs.metrics_file import MetricLine, encode_line
from tests.benchmarks.methods_curves import figure_of_curves, mean_curve
from tests.benchmarks.methods_facts import given, is_made_with, training_cpu_seconds
from tests.benchmarks.methods_page import write_page

PIXELS = 0.41
METHOD_PAGE = """# A method

`method: {{name: {}}}`, `pip install x`.

## Its recipes

Words.

| recipe | measured |
|---|---|
| `a` | not yet |

More words.
"""


def result(method: str, backbone: str, knn: float, more: float) -> dict[str, Any]:
    """An arm whose scores are `knn` and its differences from the untrained network `more`, give or
    take two points."""
    scores = [
        {
            "metric": f"eval/{protocol}/top1", "n": 2, "mean": knn, "low": knn - 0.02,
            "high": knn + 0.02, "values": {"0": knn - 0.001, "1": knn + 0.001},
            "minus_untrained": {"mean": more, "low": more - 0.02, "high": more + 0.02},
        }
        for protocol in ("knn", "linear")
    ]  # fmt: skip
    costs = {"training_seconds": 9.0, "evaluation_seconds": 2.0, "peak_memory_mb": 1.0}
    return {
        "method": method, "recipe": f"cpu/{method}", "overrides": ["method.x=1"], "scores": scores,
        "backbone": backbone, "features": "class token", "views": "2 x 32 px, simclr",
        "precision": "bf16", "images_per_cpu_second": 640.0, "training_cpu_seconds": [7.5, None],
        "budget": {
            "final_seconds": 8, "search_seconds": 4, "seeds": 2, "selection_fraction": 0.1,
            "reference": "cpu/strong", "reference_overrides": ["method.y=2"],
            "reference_speed": 645,
        },
        "pixels": {f"eval/{protocol}/top1": PIXELS for protocol in ("knn", "linear")},
        "search": [{"settings": {"optimizer.lr": 0.1}, "top1": 0.333}],
        "chosen": {"optimizer.lr": 0.1}, "commits": ["abcd"], "pretext_top1": [0.5, 0.75],
        "costs": {**costs, "images_seen": 75_000}, "curves": [[[5, 0.1], [10, 0.3]]] * 2,
        "machine": {"hardware": {"cpu": "X"}, "packages": {"torch": "2", "timm": "1"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    folder = docs / "benchmarks"
    results = folder / "results" / "methods"
    results.mkdir(parents=True)
    for arm in (
        result("weak", "resnet10t", 0.38, 0.01),
        result("strong", "resnet10t", 0.50, 0.13),
        result("masked", "vit_small", 0.45, 0.10),
    ):
        (results / f"{arm['method']}.json").write_text(json.dumps(arm), encoding="utf-8")
        own = docs / "methods" / f"{arm['method']}.md"
        own.parent.mkdir(exist_ok=True)
        own.write_text(METHOD_PAGE.format(arm["method"]), encoding="utf-8")
    (folder / "figures").mkdir()
    (folder / "figures" / "reconstructions-masked.png").write_bytes(b"")
    notes = {"masked": "Said.", "absent": "Unsaid."}
    assert write_page(results, notes, missing=["absent"]).parent == folder
    return folder


def test_scores_stand_by_half_the_best_first_beside_untrained_and_pixels(pages: Path) -> None:
    text = (pages / "methods-one-budget.md").read_text(encoding="utf-8")
    row = "50.0 [48.0, 52.0] | 37.0 | +13.0 [+11.0, +15.0] | +9.0 [+7.0, +11.0]"
    places = [text.index(f"| `strong` | {row} | {row} |"), text.index("| `weak` | 38.0")]
    places.append(text.index("## Vision transformers"))
    assert places == sorted(places)
    assert text.index("| `masked` ([note](#notes)) | 45.0") > places[-1]
    assert "](figures/reconstructions-masked.png)" in text
    assert "- `masked`: Said." in text
    assert "Unsaid" not in text
    assert "\n\nNot measured yet: `absent`.\n\n" in text
    assert "`strong`: 50.0, 75.0 %" in text


def test_the_page_of_a_method_says_what_it_reached(pages: Path) -> None:
    own = pages.parent / "methods" / "strong.md"
    text = own.read_text(encoding="utf-8")
    start = (
        "| `a` | not yet |\n\n[Under one budget for all](../benchmarks/methods-one-budget.md), 8 "
    )
    assert start in text
    scores = "50.0 [48.0, 52.0], untrained 37.0"
    assert f"`strong` (`resnet10t`): kNN {scores}; linear {scores}.\n\nMore words.\n" in text
    figure = pages / "figures" / "methods-one-budget.svg"
    drawn = figure.read_bytes()
    write_page(pages / "results" / "methods", {})
    assert own.read_text(encoding="utf-8") == text
    assert figure.read_bytes() == drawn


def test_the_page_names_what_is_not_above_the_untrained_network_or_the_pixels(pages: Path) -> None:
    text = (pages / "methods-one-budget.md").read_text(encoding="utf-8")
    networks, transformers = text.split("## Vision transformers")
    for protocol in ("kNN", "linear"):
        assert f"{protocol}: not shown to be above the untrained network: `weak`.\n" in networks
        assert f"{protocol}: below the pixels: `weak`.\n" in networks
        for other in ("untrained network", "pixels"):
            assert f"{protocol}: every interval against the {other} is above 0.\n" in transformers


def test_the_page_says_what_each_was_given_and_what_it_took(pages: Path) -> None:
    text = (pages / "methods-one-budget.md").read_text(encoding="utf-8")
    assert "| `weak` | `cpu/weak` | `method.x=1` | `resnet10t` | class token | 2 x 32" in text
    assert "| `weak` | lr 0.1: 33.3 | lr 0.1 |" in text
    assert (
        "| `weak` | 640 | 7500 | 10 | 75,000 | 1.5 | 8 |" in text
    )  # a run that noted nothing is left out


def test_the_csv_has_all_numbers_of_the_page(pages: Path) -> None:
    with (pages / "results" / "methods" / "table.csv").open(encoding="utf-8") as file:
        rows = {(row["method"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    row = rows["strong", "eval/linear/top1"]
    assert (row["values"], row["training_cpu_seconds"]) == ("0.499 0.501", "7.5 -")
    assert float(row["untrained"]) == pytest.approx(0.37)
    assert float(row["minus_pixels_low"]) == pytest.approx(0.48 - PIXELS)
    assert float(row["minus_untrained_high"]) == pytest.approx(0.15)
    assert (row["chosen"], row["steps"], row["images_seen"]) == ("optimizer.lr=0.1", "10", "75000")


def test_a_curve_is_the_mean_of_its_runs_and_of_three_neighbours() -> None:
    runs = [[(5, 0.0), (10, 0.2), (20, 0.4)], [(5, 0.2), (10, 0.4), (15, 9.0), (20, 0.6)]]
    parts, means = mean_curve(runs)  # at the steps of both: 0.1, 0.3, 0.5
    assert parts == [25.0, 50.0, 100.0]
    assert means == pytest.approx([20.0, 30.0, 40.0])


def test_every_arm_has_a_panel_and_those_left_over_are_empty() -> None:
    arms = [{"method": f"m{number}", "curves": [[(5, 0.1), (10, 0.2)]]} for number in range(6)]
    (block,) = figure_of_curves({"Half": arms}).subfigs
    shown = [axes.get_title() for axes in block.axes if axes.axison]
    assert shown == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert len(block.axes) == 10


def test_an_arm_is_described_with_its_overrides() -> None:
    network = "backbone={name: timm, model: vit_tiny_patch16_224, patch_size: 4, pool: token}"
    found = given("cpu/simclr_cifar10_short", [network, "train.precision=fp32"])
    assert found == {
        "backbone": "vit_tiny_patch16_224", "features": "class token",
        "views": "2 x 32 px, simclr", "precision": "fp32",
    }  # fmt: skip


def test_cpu_seconds_are_those_until_the_last_step(tmp_path: Path) -> None:
    """Ten seconds at 150 %, then five of the next ten, at 80 %; evaluation is not counted."""
    busy = "system/process_cpu_percent"
    lines = [
        MetricLine(0, 110_000, {busy: 150.0}),
        MetricLine(50, 112_000, {"train/loss": 1.0}),
        MetricLine(90, 115_000, {"train/loss": 1.0}),
        MetricLine(90, 120_000, {busy: 80.0}),
        MetricLine(90, 130_000, {busy: 100.0}),
    ]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(map(encode_line, lines)), encoding="utf-8")
    assert training_cpu_seconds(tmp_path) == pytest.approx(15.0 + 4.0)
    log.write_text("".join(map(encode_line, lines[1:3])), encoding="utf-8")
    assert training_cpu_seconds(tmp_path) is None


def test_a_run_is_known_by_the_settings_it_was_made_with(tmp_path: Path) -> None:
    recipe = "optimizer: {lr: 0.001}\nmethod: {flag: true, loss: {scale: [0.3, 1.0]}}\n"
    (tmp_path / "recipe.resolved.yaml").write_text(recipe, encoding="utf-8")
    same = {"optimizer.lr": "1e-3", "method.flag": True, "method.loss.scale": [0.3, 1.0]}
    assert is_made_with(tmp_path, same)
    for path, other in (("optimizer.lr", 3e-3), ("method.flag", False), ("method.loss", "x")):
        assert not is_made_with(tmp_path, {**same, path: other})
