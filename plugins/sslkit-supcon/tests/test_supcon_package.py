"""What the package ships: recipes that load and run, and imports that any plugin may have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sslkit_supcon
import yaml

from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

PACKAGE = Path(sslkit_supcon.__file__).parent
RECIPES = sorted((PACKAGE / "recipes").rglob("*.yaml"))
SMALL = [
    "data={name: synthetic, num_train: 32, num_test: 16, size: 16}",
    "augmentation.size=16",
    "train.precision=fp32",  # maps of 16 px end at 1x1, where torch's bf16 on CPUs has a fault
    "backbone={name: timm, model: test_resnet}",
    "method.head.out_dim=32",
    "train.batch_size=16",
    "train.max_steps=2",
    "train.epochs=1",
    "train.compile=false",
    "train.device=cpu",
    "schedule.warmup_epochs=0",
    "evaluate=[]",
    "expect={}",
    "tracking={name: none}",
]
"""What a recipe needs to take two steps in a second."""


def name(path: Path) -> str:
    return path.relative_to(PACKAGE / "recipes").with_suffix("").as_posix()


def test_every_recipe_is_found_by_its_name() -> None:
    shipped = shipped_recipes()
    methods = {load_recipe(path).method.name for path in RECIPES}
    assert methods == set(sslkit_supcon.register_methods())
    for path in RECIPES:
        assert shipped[name(path)].samefile(path)
        assert "# Expected: " in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_takes_steps(path: Path, tmp_path: Path) -> None:
    blur = ["augmentation.blur_kernel=null"] if "blur_kernel" in path.read_text() else []
    result = start(path, [*SMALL, *blur, f"runs_dir={tmp_path}"], display=Silent())
    assert result.status == "finished"
    assert 0.0 < result.metrics["train/loss"] < 64.0


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_states_every_field_of_its_method(path: Path) -> None:
    stated = yaml.safe_load(path.read_text())["method"]
    assert set(load_recipe(path).method.dump()) == set(stated)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "cpu"], ids=name)
def test_a_cpu_recipe_differs_from_its_sibling_in_the_method_alone(path: Path) -> None:
    own, other = (
        yaml.safe_load(found.read_text())
        for found in (path, find_recipe("cpu/simclr_cifar10_short"))
    )
    for recipe in (own, other):
        del recipe["name"], recipe["method"]
        recipe.pop("expect", None)
    assert own == other


def test_imports_are_those_that_a_plugin_may_have() -> None:
    allowed = {"sslkit", "sslkit.api", "sslkit.errors", "sslkit.randomness"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslkit."):
                module = node.module or ""
                assert module in allowed or module.startswith("sslkit.nn."), f"{path}: {module}"
