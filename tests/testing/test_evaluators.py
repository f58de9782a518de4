"""Every evaluator that comes with sslkit meets the laws of evaluators."""

from __future__ import annotations

from typing import Any

import pytest

from sslkit.testing import Check, check_plugin, checks

_SCENES = {"name": "scenes", "num_train": 8, "num_test": 6, "size": 64}
ON_FEATURES: dict[str, dict[str, Any]] = {
    "knn": {},
    "knn-of-few": {"k": 3},
    "knn-of-the-projection": {"layer": 1},
    "linear": {},
    "few_label": {},
    "clustering": {},
    "retrieval": {},
    "retrieval-in-training-images": {"gallery": "train", "k": [1, 2], "num_queries": 100},
    "collapse": {},
    "semi_supervised-by-a-probe": {"ways": ["probe"], "fractions": [0.05, 0.2], "draws": 2},
}
ON_NETWORKS: dict[str, dict[str, Any]] = {  # as little as there is to train
    "finetune": {"epochs": 1},
    "semi_supervised": {"fractions": [0.5], "draws": 2, "epochs": [1]},
    "detection": {
        "data": _SCENES,
        "steps": 2,
        "batch_size": 2,
        "sizes": [32],
        "warmup_steps": 1,
        "pyramid_width": 8,
        "head_width": 8,
    },
    "last_blocks": {"evaluator": {"name": "knn", "k": 3}},
    "stages": {"evaluator": {"name": "knn", "k": 3}},
    "segmentation": {"data": _SCENES, "size": 32, "l2": [0.01], "max_iterations": 10},
}


@pytest.mark.slow  # 20 seconds
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{name}-{check}")
        for name, fields in ON_FEATURES.items()
        for check in checks(f"evaluator:{name.partition('-')[0]}", fast=True, **fields)
    ],
)
def test_laws_on_features(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{name}-{check}")
        for name, fields in ON_NETWORKS.items()
        for check in checks(f"evaluator:{name}", **fields)
    ],
)
@pytest.mark.slow  # trains and measures small networks
def test_laws_on_networks(check: Check) -> None:
    check()


def test_chance_stands_beside_passed() -> None:
    rows = {row["law"]: row for row in check_plugin("evaluator:knn", fast=True).rows}
    name, value = rows["nothing-is-found-where-there-is-nothing"]["text"].split()
    assert name == "top1"
    assert abs(float(value) - 0.25) < 0.11  # six standard deviations of 600 images, 4 classes
