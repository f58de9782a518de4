"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_pretext

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    tiles = ["method.tile_size=4"] if "tile_size" in recipe["method"] else []
    decoder = ["method.decoder.size=16"] if "decoder" in recipe["method"] else []
    return [*SMALL_IMAGES, *tiles, *decoder]


CHECKS = package_checks(sslkit_pretext, small)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
