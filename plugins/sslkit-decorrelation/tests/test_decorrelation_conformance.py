"""The laws of the conformance kit."""

from __future__ import annotations

from typing import Any

import pytest

from sslkit.testing import Check, checks

HEAD = {"name": "mlp", "num_layers": 3, "hidden_dim": 16, "out_dim": 8, "output_norm": "none"}
COMPONENTS: dict[str, dict[str, Any]] = {
    "method:barlow_twins": {"projector": HEAD},
    "method:vicreg": {"projector": HEAD},
    "method:lejepa": {"projector": HEAD, "loss": {"name": "sigreg", "directions": 32}},
    "method:tico": {"projector": HEAD},
    "method:visreg": {"projector": HEAD, "loss": {"name": "visreg", "directions": 32}},
    "method:w_mse": {"projector": HEAD, "loss": {"name": "w_mse", "group_size": 16}},
    "loss:barlow_twins": {},
    "loss:sigreg": {"directions": 32},
    "loss:vicreg": {},
    "loss:visreg": {"directions": 32},
    "loss:w_mse": {},
}
QUICK = ("method:barlow_twins", *(name for name in COMPONENTS if name.startswith("loss:")))
"""What `make test` tries; the others are left to `make test-all`. Most share the method's code, and
TiCo's state has tests of its own."""
CHECKS = [
    pytest.param(
        check,
        id=f"{name}-{check}",
        marks=[pytest.mark.slow] if name not in QUICK else [],
    )
    for name, fields in COMPONENTS.items()
    for check in checks(name, **fields)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
