"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_supcon

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    blur = ["augmentation.blur_kernel=null"] if "blur_kernel" in recipe["augmentation"] else []
    return [*SMALL_IMAGES, "method.head.out_dim=32", *blur]


CHECKS = package_checks(
    sslkit_supcon,
    small,
    siblings={"cpu/supcon_cifar10_short": "cpu/simclr_cifar10_short"},
)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
