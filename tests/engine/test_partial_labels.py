"""Images without a label are marked -1, count for training, and never for an accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sslkit.api import SplitReader
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.engine.display import Silent
from sslkit.engine.online_probe import OnlineProbe
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

CPU = torch.device("cpu")
BLOCKS = ", ".join(
    (
        "{name: knn, k: 3}",
        "{name: linear}",
        "{name: few_label, labels_per_class: [1], draws: 2}",
        "{name: semi_supervised, fractions: [0.5], epochs: [1], draws: 1}",
        "{name: finetune, epochs: 1}",
        "{name: clustering}",
        "{name: retrieval}",
        "{name: collapse}",
    )
)
PROTOCOLS = f"evaluate=[{BLOCKS}]"


def probe() -> OnlineProbe:
    return OnlineProbe(8, 3, lr=0.1, weight_decay=0.0, seed=0, device=CPU)


def test_the_probe_learns_from_labelled_images_alone() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 2, 8), torch.tensor([0, -1, 2, 1, -1, -5])
    known = labels >= 0
    ours, reference = probe(), probe()
    with torch.no_grad():
        logits = reference.classifier(features.reshape(12, 8)).unflatten(0, (6, 2))
    weight = reference.linear.weight.detach().clone()
    found = ours.step(features, labels, 1.0)

    targets = labels[known].repeat_interleave(2)
    expected = F.cross_entropy(logits[known].flatten(0, 1), targets)
    assert float(found["online_probe/loss"]) == pytest.approx(float(expected), rel=1e-6)
    top1 = (logits[known].flatten(0, 1).argmax(1) == targets).float().mean()
    assert float(found["online_probe/top1"]) == pytest.approx(float(top1))

    standardised = reference.norm(features.reshape(12, 8)).unflatten(0, (6, 2))[known].flatten(0, 1)
    linear = torch.nn.Linear(8, 3)
    linear.load_state_dict(reference.linear.state_dict())
    F.cross_entropy(linear(standardised), targets).backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(ours.linear.weight, weight - 0.1 * linear.weight.grad)


def test_a_batch_without_labels_leaves_the_probe_as_it_was() -> None:
    ours, weight = probe(), probe().linear.weight
    found = ours.step(torch.randn(4, 8), torch.full((4,), -1), 1.0)
    assert dict(found) == {}
    assert torch.equal(ours.linear.weight, weight)


def test_the_probe_is_scored_on_labelled_images() -> None:
    ours, features = probe(), torch.randn(40, 8)
    ours.step(features, torch.arange(40) % 3, 1.0)
    labels = (torch.arange(40) % 3).where(torch.arange(40) % 4 != 0, -1)
    known = labels >= 0
    found = ours.correct(features, labels)
    assert len(found) == 30
    assert torch.equal(found, ours.correct(features[known], labels[known]))


# --- Whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Split -> which labels of the synthetic data are hidden, as a slice."""
    hidden: dict[str, Any] = {}
    opened = Synthetic.open

    def open_partly(self: Synthetic, split: Any) -> SplitReader | None:
        reader = opened(self, split)
        if reader is not None and reader.labels is not None and split in hidden:
            reader.labels = reader.labels.copy()
            reader.labels[hidden[split]] = -1
        return reader

    monkeypatch.setattr(Synthetic, "open", open_partly)
    return hidden


def metrics(result: RunResult) -> dict[str, float]:
    results = json.loads((result.run_dir / "results.json").read_text())
    assert results["trained"]["errors"] == results["baselines"]["errors"] == {}
    return {**results["trained"]["metrics"], **results["baselines"]["metrics"]}


@pytest.mark.slow  # 12 seconds
def test_every_evaluator_takes_partly_labelled_data(tiny: Path, hide: dict[str, Any]) -> None:
    hide.update(train=slice(0, None, 2), test=slice(0, None, 3))
    found = metrics(start(str(tiny), [PROTOCOLS, "train.max_steps=2"], display=Silent()))
    for name in ("knn/top1", "linear/top1", "few_label/top1_1", "finetune/top1",
                 "semi_supervised/top1_50pct_probe", "semi_supervised/top1_50pct_finetune",
                 "clustering/nmi", "retrieval/map", "online_probe/top1"):  # fmt: skip
        assert 0.0 <= found[f"eval/{name}"] <= 1.0, name
    for name in ("knn/top1", "linear/top1", "online_probe/top1", "finetune/top1"):
        hits = found[f"eval/{name}"] * 32  # labelled images of the test split
        assert hits == pytest.approx(round(hits), abs=1e-4), name


@pytest.mark.slow  # 2 seconds
def test_the_number_is_that_of_the_labelled_images(tiny: Path, hide: dict[str, Any]) -> None:
    """Pixels know nothing of training: kNN on a folder with the labelled images alone is equal."""
    hide.update(train=slice(0, 48), test=slice(0, 16))
    partly = metrics(start(str(tiny), ["train.max_steps=1"], display=Silent()))
    hide.clear()
    folder = write_images(tiny.parent / "images", train=slice(48, None), test=slice(16, None))
    data = f"data={{name: image_folder, train: {folder}/train, test: {folder}/test}}"
    whole = metrics(start(str(tiny), [data, "train.max_steps=1"], display=Silent()))
    assert partly["eval/knn/top1_pixels"] == whole["eval/knn/top1_pixels"]


def write_images(folder: Path, **splits: slice) -> Path:
    config = Synthetic.Config(num_train=96, num_test=48, size=16)
    for split in ("train", "test"):
        reader = Synthetic(config).open(split)  # type: ignore[arg-type]
        assert reader is not None
        assert reader.labels is not None
        for index in range(len(reader))[splits[split]]:
            place = folder / split / str(reader.labels[index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(reader.read(index))).save(place / f"{index}.png")
    return folder


def test_no_label_at_all_is_no_labels(tiny: Path, hide: dict[str, Any]) -> None:
    hide.update(train=slice(None), test=slice(None))
    result = start(str(tiny), ["train.max_steps=1"], display=Silent())
    results = json.loads((result.run_dir / "results.json").read_text())
    assert results["trained"]["skipped"]["knn"] == "no labels"
    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["facts"]["num_classes"] is None
