"""Everything that comes with sslkit meets the laws of its kind."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks


@pytest.mark.parametrize("check", checks("method:simclr"), ids=str)
def test_the_method(check: Check) -> None:
    check()
