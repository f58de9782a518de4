"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_series

from sslkit.recipe import find_recipe, load_recipe
from sslkit.testing import PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    return ["data.num_train=32", "data.num_test=16", "evaluate=[{name: knn, k: 3}]"]


CHECKS = [
    check
    for check in package_checks(sslkit_series, small)
    if not str(check).endswith("says-all")  # how the methods are set stands in their own packages
]
RECIPES = ("series_waves", "series_waves_byol", "series_waves_moco")


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()


def test_recipes_differ_in_the_method_alone() -> None:
    first, *others = (load_recipe(find_recipe(name)).model_dump(mode="json") for name in RECIPES)
    for other in others:
        differ = {key for key in first if first[key] != other[key]}
        assert differ <= {"name", "method", "expect", "origins"}
