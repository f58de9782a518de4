"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslkit.testing import Check, checks

SMALL_HEAD = {"name": "dino", "out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8}
WARM_UP = {"name": "linear", "start": 0.04, "end": 0.07, "epochs": 2.0}
DINO = {"head": SMALL_HEAD, "teacher_temperature": WARM_UP, "teacher_momentum": 0.9}
MASKS = {"mask_probability": 0.8, "mask_ratio": [0.2, 0.6], "min_block": 2}
SIMSIAM = {
    "projector": {"name": "mlp", "hidden_dim": 32, "out_dim": 16, "output_norm": "bn_no_affine"},
    "predictor": {"name": "mlp", "hidden_dim": 8, "out_dim": 16, "output_norm": "none"},
}
SUBJECTS: list[tuple[str, dict[str, Any]]] = [
    ("method:simsiam", SIMSIAM),
    ("loss:negative_cosine", {}),
    ("loss:koleo", {}),
    ("method:dino", DINO),
    ("head:dino", {"out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8}),
]
ON_TOKENS: list[tuple[str, dict[str, Any]]] = [
    ("method:ibot", {**DINO, "patch_teacher_temperature": WARM_UP, **MASKS}),
    ("method:dinov2", {**DINO, "patch_head": SMALL_HEAD, **MASKS}),
]
RECIPE = Path(__file__).with_name("multi_crop_vit.yaml")
CHECKS = [
    pytest.param(
        check,
        id=f"{name}-{check}",
        marks=[pytest.mark.slow] if name == "method:dino" else [],  # iBOT has all of its code
    )
    for name, fields in SUBJECTS
    for check in checks(name, **fields)
]
CHECKS += [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if slow else [])
    for name, fields in ON_TOKENS
    for check in checks(name, recipe=RECIPE, **fields)
    # 10 s of processor time; what DINOv2 has beyond iBOT has tests of its own among the fast ones
    for slow in [check.law.slow or name == "method:dinov2"]
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
