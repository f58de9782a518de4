"""The laws of the conformance kit."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks

HEAD = {"name": "mlp", "hidden_dim": 32, "out_dim": 16}
CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name, fields in {
        "method:byol": {"projector": HEAD, "predictor": HEAD},
        "loss:normalized_mse": {},
    }.items()
    for check in checks(name, **fields)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
