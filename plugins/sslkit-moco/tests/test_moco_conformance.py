"""The laws of the conformance kit."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks

ALIKE = ("method:moco_v1", "method:moco_v2")
"""What `make test` leaves to `make test-all`."""
CHECKS = [
    pytest.param(
        check,
        id=f"{name}-{check}",
        marks=[pytest.mark.slow] if check.law.slow or name in ALIKE else [],
    )
    for name in ("method:moco_v1", "method:moco_v2", "method:moco_v3")
    for check in checks(name)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
