"""The method that comes with sslkit meets the laws of its kind."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks

CHECKS = [pytest.param(check, id=str(check)) for check in checks("method:simclr")]


@pytest.mark.parametrize("check", CHECKS)
def test_the_method(check: Check) -> None:
    check()
