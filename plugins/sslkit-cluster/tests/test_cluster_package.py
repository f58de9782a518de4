"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_cluster

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    crops = recipe["augmentation"].get("views", [])
    local = ["augmentation.views.1.size=12"] if any("local" in str(v) for v in crops) else []
    return [*SMALL_IMAGES, *local]


CHECKS = package_checks(
    sslkit_cluster,
    small,
    unstated={"loss_weight": 1.0, "passes": "joint"},
    siblings={
        f"cpu/{method}_cifar10_short": "cpu/simclr_cifar10_short"
        for method in ("dcl", "nnclr", "swav")
    },
)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
