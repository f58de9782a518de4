"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_moco

from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    more = ["method.queue_size=20"] if "queue_size" in recipe["method"] else []
    if recipe["backbone"]["model"].startswith("vit_"):
        more.append("backbone={name: timm, model: test_vit, patch_size: 8, pool: token}")
    return [*SMALL_IMAGES, *more]


CHECKS = package_checks(
    sslkit_moco,
    small,
    unstated={
        "loss_weight": 1.0,
        "temperature_scaling": True,
        "freeze_patch_embedding": False,
        "vit_init": False,
    },
    siblings={"cpu/moco_cifar10_short": "cpu/simclr_cifar10_short"},
)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()
