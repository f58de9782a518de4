"""The table of methods under one budget, from the first run to the page, on a few small images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe
from sslkit.workflows.train import start
from tests.benchmarks.methods import Arm, Budget, Measuring, _overrides, next_rate, read_arms
from tests.benchmarks.methods_page import write_page
from tests.benchmarks.methods_pictures import draw


@pytest.mark.slow  # 9 seconds
def test_every_arm_names_a_recipe_of_the_table_and_fields_that_it_has() -> None:
    _, arms = read_arms()
    for arm in arms.values():
        path = find_recipe(arm.recipe)
        plain = load_recipe(path)
        assert plain.train.batch_size == 128, arm.name
        assert 2 <= len(list(arm.settings())) <= 8, arm.name
        for settings in arm.settings():
            load_recipe(path, [*arm.overrides, *_overrides(settings)])


def _tried(**top1_of_rates: float) -> list[dict[str, object]]:
    return [
        {"settings": {"optimizer.lr": rate, "other": 1}, "top1": top1}
        for rate, top1 in top1_of_rates.items()
    ]


def test_a_search_goes_on_beyond_its_learning_rates_unless_the_best_is_between_others() -> None:
    assert next_rate(_tried(**{"1e-3": 0.4, "3e-3": 0.3})) == {"optimizer.lr": 3.3e-4, "other": 1}
    assert next_rate(_tried(**{"1e-3": 0.3, "3e-3": 0.4})) == {"optimizer.lr": 9e-3, "other": 1}
    assert next_rate(_tried(**{"3.3e-4": 0.2, "1e-3": 0.4, "3e-3": 0.3})) is None


def test_a_smaller_batch_makes_more_steps_of_as_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, arms = read_arms()
    monkeypatch.setattr(Measuring, "ratio", lambda _: 0.5)  # a step takes half of the reference's
    small = Measuring(arms["mae"], budget, tmp_path / "mae", tmp_path)
    large = Measuring(arms["simclr"], budget, tmp_path / "simclr", tmp_path)
    assert (small.batch_size, large.batch_size) == (32, 128)
    assert small.images_per_second() == budget.reference_speed * 32 / 128 / 0.5
    assert large.images_per_second() == budget.reference_speed / 0.5
    # A tenth is warm-up, in epochs of 50,000 images.
    assert small.length(64.0, 10.0) == ["train.max_steps=20", "schedule.warmup_epochs=0.0013"]
    assert large.length(64.0, 10.0) == ["train.max_steps=5", "schedule.warmup_epochs=0.0013"]


def _write_images(path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, format="PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    labels = [number % 10 for number in range(count)]
    pq.write_table(pa.table({"image": files, "label": labels}), path)


@pytest.mark.slow  # six runs as processes
@pytest.mark.timeout(600)
def test_a_method_is_measured_and_its_page_written(tmp_path: Path) -> None:
    data, results = tmp_path / "cifar10", tmp_path / "docs" / "results" / "methods"
    data.mkdir()
    results.mkdir(parents=True)
    _write_images(data / "train.parquet", 400)
    _write_images(data / "test.parquet", 100)
    network = ["backbone.model=test_resnet"]
    arm = Arm("simclr", "cpu/simclr_cifar10_short", {"optimizer.lr": [1e-3, 2e-3]}, network)
    budget = Budget(
        overrides=["train.precision=fp32"], reference="cpu/simclr_cifar10_short",
        reference_overrides=network, reference_speed=600, search_seconds=0.5, final_seconds=1.0,
        seeds=2, selection_fraction=0.25, speed_rounds=1,
    )  # fmt: skip
    measuring = Measuring(arm, budget, tmp_path / "work", tmp_path)
    result = measuring.result()
    assert {row["n"] for row in result["scores"]} == {2}
    assert result["chosen"] == max(result["search"], key=lambda each: each["top1"])["settings"]
    assert all(curve for curve in result["curves"])
    (results / "simclr.json").write_text(json.dumps(result), encoding="utf-8")
    own = tmp_path / "methods" / "simclr.md"
    own.parent.mkdir()
    own.write_text("`method: {name: simclr}`\n\n## Its recipes\n\n| recipe |\n|---|\n\nEnd.\n")
    page = write_page(results, {"simclr": "A note."}).read_text(encoding="utf-8")
    assert "| `simclr` ([note](#notes)) |" in page
    assert "- `simclr`: A note." in page
    with_pixels = result["pixels"]["eval/knn/top1"]
    row = next(row for row in result["scores"] if row["metric"] == "eval/knn/top1")
    assert f"| {100 * (row['mean'] - with_pixels):+.1f} |" in page  # two seeds: no interval
    assert "| `train.precision=fp32`, `backbone.model=test_resnet` | `test_resnet` |" in page
    assert (result["backbone"], result["precision"]) == ("test_resnet", "fp32")
    assert len(result["training_cpu_seconds"]) == 2
    assert len(result["commits"]) == 1
    assert len(result["search"]) == 3  # two of the file, and beyond
    with (results / "table.csv").open(encoding="utf-8") as file:
        assert {row["metric"] for row in csv.DictReader(file)} >= {"eval/knn/top1"}
    assert (tmp_path / "docs" / "figures" / "methods-one-budget.svg").stat().st_size > 1000
    again = Measuring(arm, budget, tmp_path / "work", tmp_path).result()
    assert again["scores"] == result["scores"]  # from what is kept


@pytest.mark.slow  # a run of MAE
def test_what_a_run_makes_of_photographs_is_drawn(tmp_path: Path) -> None:
    overrides = [
        "data={name: synthetic, num_train: 128, num_test: 32, size: 32}", "train.max_steps=1",
        "tracking={name: none}", "evaluate=[]", "callbacks=[]", "expect={}",
        "backbone.model_args.embed_dim=32", "method.decoder.width=16", f"runs_dir={tmp_path}",
    ]  # fmt: skip
    run = start(find_recipe("cpu/mae_cifar10_short"), overrides, display=Silent()).run_dir
    picture = draw(run, tmp_path / "figures")
    assert picture.name == "reconstructions-mae.png"
    with Image.open(picture) as image:
        assert image.width < image.height  # three columns, five rows
