"""The components of this package meet the laws of their kinds."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks


@pytest.mark.parametrize("check", checks("schedule:multistep", milestones=(2, 3.5)), ids=str)
def test_multistep(check: Check) -> None:
    check()
