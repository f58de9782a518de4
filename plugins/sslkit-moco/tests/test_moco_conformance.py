"""The laws of the conformance kit."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks

ALIKE = ("method:moco_v1", "method:moco_v2")
"""What `make test` leaves to `make test-all`."""
HEAD = {"name": "mlp", "hidden_dim": 32, "out_dim": 16}
CHECKS = [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if name in ALIKE else [])
    for name, heads in {
        "method:moco_v1": ["head"],
        "method:moco_v2": ["head"],
        "method:moco_v3": ["projector", "predictor"],
    }.items()
    for check in checks(name, **dict.fromkeys(heads, HEAD))
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
