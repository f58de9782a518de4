"""Its components meet the laws of their kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sslkit.testing import Check, check_plugin, checks

CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name, found in {
        "resnet1d": checks("backbone:resnet1d", width=8),
        "series": checks("augmentation:series", length=24, flip=0.5, num_views=3),
        "waves": checks("dataset:waves", num_train=80, num_test=40, length=32),
    }.items()
    for check in found
]  # slow: starts an interpreter, or compiles


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()


def test_the_folder(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        noise = np.random.default_rng(seed)
        for number in range(24):
            path = tmp_path / split / ("low", "high")[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, noise.normal(size=(2, 32)).astype(np.float32))
    fields = {"train": tmp_path / "train", "test": tmp_path / "test"}
    assert not check_plugin("dataset:series_folder", fast=True, **fields).broken
