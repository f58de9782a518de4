"""Its components meet the laws of their kinds."""

from __future__ import annotations

import pytest

from sslkit.testing import Check, checks


@pytest.mark.parametrize("check", checks("backbone:resnet1d", width=8), ids=str)
def test_the_backbone(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    "check", checks("augmentation:series", length=24, flip=0.5, num_views=3), ids=str
)
def test_the_augmentation(check: Check) -> None:
    check()
