"""The laws of the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.testing import Check, checks

RECIPE = Path(__file__).with_name("one_view_vit.yaml")
SMALL = {"least_context": 3, "predictor": {"width": 16, "depth": 1, "heads": 2}}
CHECKS = [
    pytest.param(check, id=str(check)) for check in checks("method:ijepa", recipe=RECIPE, **SMALL)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
