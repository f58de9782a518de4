"""The laws of the conformance kit."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks

CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name in ("method:supcon", "loss:supcon")
    for check in checks(name)
]


@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
