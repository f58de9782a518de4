"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_setup import NETWORK, small_tokenizer

from sslkit.testing import Check, checks

RECIPE = Path(__file__).with_name("one_view_vit.yaml")
ON_CODES = Path(__file__).with_name("one_view_codes.yaml")
SUBJECTS = {
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
    "simmim": {"cell": 8},
    "maskfeat": {"min_block": 4, "cell": 4},
    "beit": {"min_block": 4, "tokenizer": small_tokenizer()},
    "data2vec": {"min_block": 4, "layers": 3, "teacher_momentum": 0.9},
}
FOUND = {
    **{name: checks(f"method:{name}", recipe=RECIPE, **own) for name, own in SUBJECTS.items()},
    "vq_tokenizer": checks("method:vq_tokenizer", recipe=ON_CODES),
    "vq_autoencoder": checks("backbone:vq_autoencoder", recipe=ON_CODES, **NETWORK),
}
LATER = ("simmim", "maskfeat")
"""Left to `make test-all`: half a minute; their parts and steps have tests among the fast ones."""
CHECKS = [
    pytest.param(check, id=f"{name}-{check}", marks=[pytest.mark.slow] if name in LATER else [])
    for name, found in FOUND.items()
    for check in found
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
