"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_jepa

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    return [
        *SMALL_IMAGES,
        "data.size=32",
        "augmentation.size=32",
        "backbone={name: timm, model: test_vit, patch_size: 4, pool: avg}",
        "method.predictor={width: 16, depth: 1, heads: 2}",
    ]


@pytest.mark.parametrize("check", package_checks(sslkit_jepa, small), ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
