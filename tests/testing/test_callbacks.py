"""Every callback that comes with sslkit meets the laws of callbacks."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=str(check),
            marks=[pytest.mark.slow] if check.law.slow else [],  # starts an interpreter
        )
        for check in checks("callback:augmented_views", num_images=2)
    ],
)
def test_augmented_views(check: Check) -> None:
    check()
