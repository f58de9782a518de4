"""The laws of the conformance kit."""

from __future__ import annotations

from typing import Any

import pytest

from sslkit.testing import Check, checks

SMALL_HEAD = {"name": "dino", "out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8}
WARM_UP = {"name": "linear", "start": 0.04, "end": 0.07, "epochs": 2.0}
DINO = {"head": SMALL_HEAD, "teacher_temperature": WARM_UP, "teacher_momentum": 0.9}
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
CHECKS = [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if check.law.slow else [])
    for name, fields in SUBJECTS
    for check in checks(name, **fields)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
