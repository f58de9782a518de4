"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.testing import Check, checks

RECIPE = Path(__file__).with_name("one_view_vit.yaml")
SUBJECTS = {
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
    "simmim": {"cell": 8},
    "data2vec": {"min_block": 4, "layers": 3, "teacher_momentum": 0.9},
}
CHECKS = [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if check.law.slow else [])
    for name, fields in SUBJECTS.items()
    for check in checks(f"method:{name}", recipe=RECIPE, **fields)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
