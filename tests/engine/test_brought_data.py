"""Entries of `evaluate` that bring images: a labelled set that watches unlabelled training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from sslkit import load_encoder, run
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.evaluation.features import extract
from sslkit.experiment.check import check
from sslkit.experiment.stores import open_stores
from sslkit.nn.compute import Compute
from sslkit.recipe import load_recipe
from sslkit.recipe.warnings import find_warnings
from sslkit.workflows.evaluate import evaluate_run

CPU = torch.device("cpu")
WATCHED = "{name: synthetic, num_train: 60, num_test: 40, size: 16, data_seed: 3}"
KNN = f"{{name: knn, k: 5, every_epochs: 1, data: {WATCHED}}}"


@pytest.fixture
def unlabelled(tmp_path: Path, tiny: Path) -> list[str]:
    """Overrides that train on a flat folder, which has no labels and no test split."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(32):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [f"data={{name: image_folder, train: {folder}}}", "train.epochs=2"]


@pytest.mark.slow  # 2 seconds
def test_a_labelled_set_watches_unlabelled_training(
    tiny: Path, unlabelled: list[str], tmp_path: Path
) -> None:
    result = run(tiny, [*unlabelled, f"evaluate=[{KNN}, {{name: collapse}}]"])
    recipe = load_recipe(result.run_dir / "recipe.resolved.yaml")
    stores = open_stores(recipe, Silent())
    own = stores.elsewhere["evaluate.0"]
    assert stores.train.labels is None
    assert own.test is not None

    encoder = load_encoder(result.run_dir)
    as_measured = Compute(CPU, "fp32", recipe.train.channels_last)
    train, test = (
        extract(encoder, evaluation_batches(store, encoder.preprocess, 64, CPU), as_measured)
        for store in (own.train, own.test)
    )
    train, test = (nn.functional.normalize(each).numpy() for each in (train, test))
    judge = KNeighborsClassifier(5, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
    expected = judge.fit(train, own.train.labels).score(test, own.test.labels)
    assert result.metrics["eval/knn/top1"] == pytest.approx(expected, abs=1e-6)
    # Baselines and the curve over epochs are there as for any evaluator.
    assert {"eval/knn/top1_pixels", "eval/knn/top1_untrained"} <= set(result.metrics)
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert sum("eval/knn/top1" in json.loads(line)["metrics"] for line in lines) == 2

    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["data"]["evaluate.0 train"] == own.train.fingerprint
    # Measured again, from the run folder alone, it is the same number.
    again = evaluate_run(result.run_dir, None, [], Silent())
    assert again.results.trained.metrics["eval/knn/top1"] == result.metrics["eval/knn/top1"]


@pytest.mark.slow  # 9 seconds
def test_names_are_unique_over_all_data_and_entries_share_what_they_bring(tiny: Path) -> None:
    linear = f"{{name: linear, data: {WATCHED}}}"
    collapse = f"{{name: collapse, data: {WATCHED}}}"
    entries = f"evaluate=[{{name: knn, k: 5}}, {KNN}, {linear}, {{name: collapse}}, {collapse}]"
    recipe = load_recipe(tiny, [entries, "train.epochs=1"])
    stores = open_stores(recipe, Silent())
    assert stores.elsewhere["evaluate.1"] is stores.elsewhere["evaluate.2"]
    metrics = run(tiny, [entries, "train.epochs=1"]).metrics
    assert {"eval/knn/top1", "eval/knn_2/top1", "eval/linear/top1"} <= set(metrics)
    assert {"collapse/std", "collapse_2/std"} <= set(metrics)
    assert metrics["collapse/std"] != metrics["collapse_2/std"]
    # The embeddings are those of the run's own batch: they are judged once.
    assert not any(key.startswith("collapse_2/embedding") for key in metrics)


def test_the_facts_are_those_of_the_data_that_is_measured(
    tiny: Path, unlabelled: list[str]
) -> None:
    bare = load_recipe(tiny, [*unlabelled, "evaluate=[{name: knn, k: 5}]"])
    assert any("will be skipped" in str(each) for each in find_warnings(bare, check(bare)))
    watched = load_recipe(tiny, [*unlabelled, f"evaluate=[{KNN}]"])
    facts = check(watched)
    assert not any("will be skipped" in str(each) for each in find_warnings(watched, facts))
    assert facts.num_classes is None
    assert facts.evaluated_on["evaluate.0"].num_images == 60


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{name: image_folder, train: nowhere}", r"evaluate\.0\.data\.train: .*nowhere"),
        ("{name: digits}", r"evaluate\.0\.data: its images have 1 channel\(s\), and the encoder"),
    ],
)
def test_data_that_does_not_suit_is_refused_before_the_start(
    tiny: Path, data: str, expected: str
) -> None:
    recipe = load_recipe(tiny, [f"evaluate=[{{name: knn, k: 5, data: {data}}}]"])
    with pytest.raises(RecipeError, match=expected):
        check(recipe)


def test_training_on_the_test_images_of_a_watched_set_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for split, label, number in (("train", "a", 16), ("train", "b", 16), ("test", "a", 4)):
        folder = tmp_path / split / label
        folder.mkdir(parents=True)
        for place in range(number):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{place}.png")
    everything = tmp_path / "everything"
    everything.mkdir()
    for number, path in enumerate([*tmp_path.glob("train/*/*"), *tmp_path.glob("test/*/*")]):
        (everything / f"{number}.png").write_bytes(path.read_bytes())
    watched = f"{{name: image_folder, train: {tmp_path}/train, test: {tmp_path}/test}}"
    recipe = load_recipe(
        tiny,
        [
            f"data={{name: image_folder, train: {everything}}}",
            f"evaluate=[{{name: knn, k: 1, data: {watched}}}]",
        ],
    )
    stores = open_stores(recipe, Silent())
    assert "the run trains on test images of evaluate.0: 4 of 4" in " ".join(stores.train.notes)
