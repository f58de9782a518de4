"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslkit.testing import Check, checks

RECIPE = Path(__file__).with_name("pretext.yaml")
DECODER = {"name": "conv_decoder", "size": 16, "width": 8}
METHODS: dict[str, dict[str, Any]] = {
    "denoising": {"decoder": DECODER},
    "rotnet": {},
    "jigsaw": {
        "num_permutations": 6,
        "tile_size": 4,
        "tile_head": {"name": "mlp", "num_layers": 1, "out_dim": 8, "output_norm": "bn"},
        "head": {"name": "mlp", "num_layers": 1, "out_dim": 6, "output_norm": "none"},
    },
}
CHECKS = [
    # 10 s; what RotNet computes has tests among the fast ones
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if name == "rotnet" else [])
    for name, found in {
        **{
            name: checks(f"method:{name}", recipe=RECIPE, **fields)
            for name, fields in METHODS.items()
        },
        "conv_decoder": checks("head:conv_decoder", size=10, width=24),
    }.items()
    for check in found
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
