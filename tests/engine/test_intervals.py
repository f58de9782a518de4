"""What a run reports of its accuracies: each has an interval, and so has each difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslkit.engine.display import Silent
from sslkit.evaluation.scores import is_score
from sslkit.workflows.train import start

PROTOCOLS = [
    "{name: knn, k: 5}",
    "{name: linear, l2: [1e-1, 1e-3]}",
    "{name: finetune, epochs: 1}",
    "{name: few_label, labels_per_class: [1], draws: 4}",
    "{name: semi_supervised, fractions: [0.2], epochs: [1], ways: [probe]}",
    "{name: retrieval}",
    "{name: segmentation, stage: 1, max_iterations: 5, "
    "data: {name: scenes, size: 16, num_train: 8, num_test: 12}}",
]


@pytest.mark.slow  # 9 seconds
def test_every_accuracy_of_a_run_has_an_interval(tiny: Path) -> None:
    """Over the test images, for every subject and for the differences, within 0 and 100 %."""
    result = start(
        str(tiny), [f"evaluate=[{', '.join(PROTOCOLS)}]", "train.epochs=1"], display=Silent()
    )
    rows = json.loads((result.run_dir / "results.json").read_text())["comparison"]
    rows = [row for row in rows if is_score(row["metric"])]
    assert {row["protocol"] for row in rows} == {
        "knn", "linear", "finetune", "few_label", "retrieval", "semi_supervised", "online_probe",
        "segmentation",
    }  # fmt: skip
    for row in rows:
        for found in row["values"].values():
            assert found["low"] is not None, row
            assert 0.0 <= found["low"] <= found["value"] <= found["high"] <= 1.0, row
            assert found["low"] < found["high"], row
            assert found["images"] == (12 if row["protocol"] == "segmentation" else 48)
        for found in row["differences"].values():
            assert found["low"] is not None, row
            assert -1.0 <= found["low"] <= found["value"] <= found["high"] <= 1.0, row
