"""Every encoder of a run is measured with batch statistics of the same images, and exported so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sslkit
from sslkit.api import Backbone
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError
from sslkit.experiment.restore import load_method
from sslkit.experiment.stores import open_stores
from sslkit.recipe import load_recipe
from sslkit.runs.state import read_state
from sslkit.workflows.evaluate import evaluate_run, evaluate_weights
from sslkit.workflows.train import start

DIGITS = """\
name: digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.4, 1.0], flip: 0, blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: simclr
  head: {name: mlp, hidden_dim: 64, out_dim: 32}
  loss: {name: nt_xent, temperature: 0.2}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 1e-4}
train: {epochs: 2, batch_size: 128, device: cpu, loader_threads: 0}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
tracking: {name: none}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 22 steps: running statistics lag far behind the weights."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("digits")
    (place / "digits.yaml").write_text(DIGITS + f"runs_dir: {place / 'runs'}\n")
    return start(str(place / "digits.yaml"), display=Silent()).run_dir


def metrics_of(run: Path) -> dict[str, float]:
    results = json.loads((run / "results.json").read_text())
    return {**results["trained"]["metrics"], **results["baselines"]["metrics"]}


def features(run: Path, encoder: Backbone) -> tuple[Tensor, Tensor]:
    """Of both splits, by plain calls."""
    stores = open_stores(load_recipe(run / "recipe.resolved.yaml"), Silent())
    with torch.no_grad():
        train, test = (
            torch.cat([encoder(b) for b in evaluation_batches(s, encoder.preprocess, 512, "cpu")])
            for s in (stores.train, stores.test)
            if s is not None
        )
    return train, test


def neighbours_agree(run: Path, encoder: Backbone) -> float:
    """Accuracy of scikit-learn's five nearest neighbours, weighted as the evaluator does."""
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (nn.functional.normalize(part).numpy() for part in features(run, encoder))
    stores = open_stores(load_recipe(run / "recipe.resolved.yaml"), Silent())
    labels = [
        store.labels.numpy()
        for store in (stores.train, stores.test)
        if store and store.labels is not None
    ]
    model = KNeighborsClassifier(5, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
    return float(model.fit(train, labels[0]).score(test, labels[1]))


def test_what_is_measured_is_what_is_exported(digits: Path) -> None:
    measured = metrics_of(digits)["eval/knn/top1"]
    exported = sslkit.load_encoder(digits)
    assert neighbours_agree(digits, exported) == pytest.approx(measured, abs=0.006)
    running = load_method(digits)[2].encoder.eval()  # as training left it
    assert neighbours_agree(digits, running) < measured - 0.01


def test_the_evaluation_of_a_run_repeats_its_table_to_the_bit(digits: Path) -> None:
    saved = load_recipe(digits / "recipe.resolved.yaml")
    again = evaluate_run(digits, None, [], Silent()).results
    table = {**again.trained.metrics, **again.baselines.metrics}
    expected = metrics_of(digits)
    assert {key: expected[key] for key in table} == table
    assert table["eval/knn/top1"] != table["eval/knn/top1_untrained"]
    assert saved.evaluation_precision == "fp32"


def test_a_checkpoint_is_calibrated_as_its_run_is(digits: Path) -> None:
    (checkpoint,) = (digits / "checkpoints").glob("*22.pt")
    exported = sslkit.load_encoder(digits).state_dict()
    for name, value in sslkit.load_encoder(checkpoint).state_dict().items():
        assert torch.equal(value, exported[name]), name
    running = load_method(digits)[2].encoder.state_dict()
    differing = {name for name, value in exported.items() if not torch.equal(value, running[name])}
    assert differing
    assert all("running_" in name for name in differing)


@pytest.mark.slow  # 7 seconds
def test_a_run_measures_other_data_with_its_own_statistics(digits: Path, tmp_path: Path) -> None:
    """And the untrained encoder with them too: on other data both have seen none of it, so that the
    numbers are those of an entry of `evaluate` that brings the data."""
    other = evaluate_run(digits, ["knn"], ["data.size=20"], Silent()).results
    assert other.trained.metrics["eval/knn/top1"] != metrics_of(digits)["eval/knn/top1"]

    brought = "evaluate=[{name: knn, k: 5, data: {name: digits, size: 20}}]"
    recipe = digits / "recipe.resolved.yaml"
    beside = start(str(recipe), [brought, f"runs_dir={tmp_path}"], display=Silent()).run_dir
    assert read_state(beside)["method"].keys() == read_state(digits)["method"].keys()
    found = {**other.trained.metrics, **other.baselines.metrics}
    assert {key: metrics_of(beside)[key] for key in found} == found

    weights = evaluate_weights(digits, recipe, ["knn"], ["data.size=20"], Silent()).results
    assert other.trained.metrics == weights.trained.metrics
    untrained = "eval/knn/top1_untrained"  # of weights whose images nobody knows: of the data's own
    assert other.baselines.metrics[untrained] != weights.baselines.metrics[untrained]


def test_weights_are_measured_as_given(digits: Path) -> None:
    """An exported encoder gets the numbers of its run; other statistics get others."""
    recipe = digits / "recipe.resolved.yaml"
    given = evaluate_weights(digits / "encoder.safetensors", recipe, ["knn"], [], Silent())
    expected = metrics_of(digits)
    assert given.results.trained.metrics["eval/knn/top1"] == expected["eval/knn/top1"]
    untrained = given.results.baselines.metrics["eval/knn/top1_untrained"]
    assert untrained == expected["eval/knn/top1_untrained"]


def test_a_checkpoint_without_its_images_is_refused(tiny: Path, tmp_path: Path) -> None:
    run = start(str(tiny), ["train.max_steps=1", "evaluate=[]"], display=Silent()).run_dir
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    saved = run / "recipe.resolved.yaml"
    saved.write_text(saved.read_text().replace("num_train: 96", "num_train: 97"))
    with pytest.raises(CheckpointError, match=r"training images, which have changed .*\.safete"):
        sslkit.load_encoder(checkpoint)
    missing = "{name: image_folder, train: gone}"
    text = saved.read_text().splitlines()
    start_of, end = text.index("data:"), text.index("augmentation:")
    saved.write_text("\n".join([*text[:start_of], f"data: {missing}", *text[end:]]))
    with pytest.raises(CheckpointError, match="cannot be opened") as refused:
        sslkit.load_encoder(checkpoint)
    assert "\n" not in str(refused.value)
    assert sslkit.load_encoder(run).num_features  # the file has its statistics


def test_without_batch_norm_no_image_is_needed(tiny: Path) -> None:
    vit = "backbone={name: timm, model: test_vit, patch_size: 8}"
    run = start(str(tiny), [vit, "train.max_steps=1", "evaluate=[]"], display=Silent()).run_dir
    (checkpoint,) = (run / "checkpoints").glob("*.pt")
    saved = run / "recipe.resolved.yaml"
    saved.write_text(saved.read_text().replace("num_train: 96", "num_train: 97"))
    encoder = sslkit.load_encoder(checkpoint)
    for name, value in sslkit.load_encoder(run).state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


@pytest.mark.slow  # 4 seconds
def test_evaluation_changes_no_bit_of_the_training(tiny: Path) -> None:
    block = "evaluate=[{name: knn, k: 5, every_epochs: 1, layer: 1}]"
    runs = [
        start(str(tiny), [override], display=Silent()).run_dir
        for override in (block, "evaluate=[]")
    ]
    watched, alone = (read_state(run) for run in runs)
    for part in ("method", "probe"):
        assert flat(watched[part]).keys() == flat(alone[part]).keys()
        for name, value in flat(alone[part]).items():
            assert torch.equal(flat(watched[part])[name], value), name
    first, second = (sslkit.load_encoder(run).state_dict() for run in runs)
    for name, value in first.items():  # whether or not anything was measured
        assert torch.equal(second[name], value), name


def flat(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(tree, dict):
        parts = [flat(value, f"{prefix}.{key}") for key, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: tree} if isinstance(tree, Tensor) else {}


# --- The online probe -----------------------------------------------------------------------------


def test_the_online_probe_is_tested_on_the_encoder_that_is_exported(digits: Path) -> None:
    """Its value is that of its own classifier on features of the exported encoder, and no less than
    on the augmented batches that it learns from; with lagging statistics it was near chance."""
    state = read_state(digits)["probe"]["classifier"]
    _, test = features(digits, sslkit.load_encoder(digits))
    mean, variance = state["0.running_mean"], state["0.running_var"]
    standardised = (test - mean) / (variance + 1e-5).sqrt()
    predicted = (standardised @ state["1.weight"].T + state["1.bias"]).argmax(dim=1)
    stores = open_stores(load_recipe(digits / "recipe.resolved.yaml"), Silent())
    assert stores.test is not None
    truth = (predicted == stores.test.labels).float().mean()
    logged = metrics_of(digits)["eval/online_probe/top1"]
    assert float(truth) == pytest.approx(logged, abs=0.003)
    lines = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    metrics = [line.get("metrics", {}) for line in lines]
    key = "train/online_probe/top1"
    assert logged > [found[key] for found in metrics if key in found][-1]
