"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_mim
import yaml
from tokenizer_setup import NETWORK, small_tokenizer

from sslkit.recipe import find_recipe
from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks

OF_METHODS = {
    "mae": ["method.decoder={width: 16, depth: 1, heads: 2}"],
    "simmim": ["method.cell=8"],
    "maskfeat": ["method.min_block=3", "method.cell=4"],
    "vq_tokenizer": [f"backbone={json.dumps({'name': 'vq_autoencoder', **NETWORK})}"],
    "beit": ["method.min_block=3", f"method.tokenizer={small_tokenizer()}"],
    "data2vec": ["method.min_block=4"],
}


def small(recipe: Mapping[str, Any]) -> list[str]:
    images = ["data.size=32", "augmentation.size=32"]
    network = "backbone={name: timm, model: test_vit, patch_size: 4, pool: token}"
    return [*SMALL_IMAGES, *images, network, *OF_METHODS[recipe["method"]["name"]]]


CHECKS = package_checks(sslkit_mim, small)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()


@pytest.mark.parametrize("method", ["simmim", "maskfeat", "beit", "data2vec"])
def test_the_cpu_recipes_differ_in_method_and_crops_alone(method: str) -> None:
    own, other = (
        yaml.safe_load(find_recipe(f"cpu/{method}_cifar10_short").read_text())
        for method in ("mae", method)
    )
    for recipe in (own, other):
        del recipe["name"], recipe["method"], recipe["augmentation"]
        recipe.pop("callbacks", None)
    assert own == other
