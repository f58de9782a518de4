"""The components of this package meet the laws of their kinds."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks


@pytest.mark.parametrize("check", checks("loss:normalized_mse"), ids=str)
def test_normalized_mse(check: Check) -> None:
    check()
