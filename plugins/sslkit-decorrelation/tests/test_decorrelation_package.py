"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_decorrelation

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    narrow = ["method.projector.hidden_dim=32", "method.projector.out_dim=32"]
    blur = ["augmentation.blur_kernel=null"] if "blur_kernel" in recipe["augmentation"] else []
    return [*SMALL_IMAGES, *narrow, *blur]


CHECKS = package_checks(
    sslkit_decorrelation,
    small,
    siblings={
        f"cpu/{method}_cifar10_short": "cpu/simclr_cifar10_short"
        for method in sslkit_decorrelation.register_methods()
    },
)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
