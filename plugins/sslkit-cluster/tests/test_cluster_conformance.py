"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslkit.testing import Check, checks

HEAD = {"name": "mlp", "hidden_dim": 16, "out_dim": 8, "output_norm": "none"}
FIELDS: dict[str, dict[str, Any]] = {
    "loss:dcl": {},
    "method:nnclr": {"projector": HEAD, "predictor": HEAD, "queue_size": 40},
    "method:swav": {
        "projector": HEAD,
        "num_prototypes": 12,
        "freeze_prototypes_epochs": 0.2,
        "queue_size": 40,
        "queue_start_epoch": 0.0,
    },
}
"""Component -> fields that make it small."""
CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name, fields in FIELDS.items()
    for check in checks(name, **fields)
]
MULTI_CROP = checks("method:swav", recipe=Path(__file__).with_name("multicrop.yaml"))


@pytest.mark.slow  # every law once more, with views of two sizes
@pytest.mark.parametrize("check", MULTI_CROP, ids=str)
def test_laws_with_multi_crop(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
