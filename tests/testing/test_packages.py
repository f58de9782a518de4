"""What is held of a whole package: each fault fails the one check that is meant for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sslkit_byol
import yaml

from sslkit.errors import TrainingError
from sslkit.recipe import find_recipe
from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks

SIBLING = "cpu/simclr_cifar10_short"
NAME = "cpu/byol_cifar10_short"


@pytest.fixture
def package(tmp_path: Path) -> ModuleType:
    """A package with a recipe of another that is installed."""
    recipe = tmp_path / "recipes" / f"{NAME}.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_bytes(find_recipe(NAME).read_bytes())
    (tmp_path / "method.py").write_text("import sslkit.nn.ema\nfrom sslkit.api import Method\n")
    module = ModuleType("sslkit_made")
    module.__file__ = str(tmp_path / "__init__.py")
    module.__dict__["register_methods"] = sslkit_byol.register_methods
    return module


def change(package: ModuleType, **blocks: Any) -> None:
    path = Path(str(package.__file__)).parent / "recipes" / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | blocks))


def named(package: ModuleType, law: str, *overrides: str) -> PackageCheck:
    checks = package_checks(package, lambda recipe: overrides)
    return next(check for check in checks if law in str(check))


def said(package: ModuleType, check: str) -> str:
    """What the only check that fails says; those before a run are tried."""
    checks = package_checks(
        package,
        lambda recipe: [*SMALL_IMAGES],
        unstated={"loss_weight": 1.0},
        siblings={NAME: SIBLING},
    )
    found = {}
    for each in checks:
        if not str(each).endswith(("is-found", "takes-steps")):
            try:
                each()
            except AssertionError as error:
                found[str(each)] = str(error)
    assert set(found) <= {check}
    return found.get(check, "")


def test_what_is_in_order_fails_nothing(package: ModuleType) -> None:
    assert said(package, "imports") == ""


def test_an_import_of_the_engine(package: ModuleType) -> None:
    (Path(str(package.__file__)).parent / "other.py").write_text("import sslkit.engine.loop\n")
    assert "other.py imports sslkit.engine.loop" in said(package, "imports")


def test_a_method_without_a_recipe(package: ModuleType) -> None:
    package.__dict__["register_methods"] = lambda: {"byol": "a:B", "other": "a:C"}
    assert said(package, "methods-have-recipes") == "no recipe trains ['other']"


def test_a_field_that_is_left_to_its_default(package: ModuleType) -> None:
    stated = yaml.safe_load(find_recipe(NAME).read_text())["method"]
    del stated["teacher_momentum"]
    change(package, method=stated)
    assert "leaves fields of its method to their defaults: {'teacher_mom" in said(
        package, f"{NAME}-says-all"
    )


def test_a_recipe_that_differs_in_more_than_its_method(package: ModuleType) -> None:
    change(package, train={"epochs": 5, "batch_size": 128})
    assert "differs from cpu/simclr_cifar10_short in ['train'] too" in said(
        package, f"{NAME}-has-a-sibling"
    )


def test_a_recipe_under_a_name_that_another_has(package: ModuleType) -> None:
    with pytest.raises(AssertionError, match=r"byol_cifar10_short is found at .*sslkit_byol"):
        named(package, "is-found")()


def test_a_recipe_that_diverges(package: ModuleType) -> None:
    found = named(package, "steps", *SMALL_IMAGES, "optimizer={name: sgd, lr: 1e30}")
    with pytest.raises(TrainingError, match=r"step \d: the loss is"):
        found()


def test_further_recipes_of_a_method_are_slow(package: ModuleType) -> None:
    recipes = Path(str(package.__file__)).parent / "recipes"
    (recipes / "second.yaml").write_bytes(find_recipe(NAME).read_bytes())
    slow = {str(check): check.slow for check in package_checks(package, lambda recipe: [])}
    assert not slow[f"{NAME}-takes-steps"]
    assert {name for name, is_slow in slow.items() if is_slow} == {"second-takes-steps"}
