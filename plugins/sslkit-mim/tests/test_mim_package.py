"""What the package ships: recipes that load and run, and imports that any plugin may have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sslkit_mim
import yaml

from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

PACKAGE = Path(sslkit_mim.__file__).parent
RECIPES = sorted((PACKAGE / "recipes").rglob("*.yaml"))
SMALL = [
    "data={name: synthetic, num_train: 32, num_test: 16, size: 32}",
    "augmentation.size=32",
    "backbone={name: timm, model: test_vit, patch_size: 4, pool: token}",
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
OF_METHODS = {
    "mae": ["method.decoder={width: 16, depth: 1, heads: 2}"],
    "simmim": ["method.cell=8"],
    "data2vec": ["method.min_block=4"],
}


def name(path: Path) -> str:
    return path.relative_to(PACKAGE / "recipes").with_suffix("").as_posix()


def test_every_recipe_is_found_by_its_name() -> None:
    shipped = shipped_recipes()
    assert len(RECIPES) >= 3
    for path in RECIPES:
        assert shipped[name(path)].samefile(path)
        assert "# Expected: " in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_takes_steps(path: Path, tmp_path: Path) -> None:
    own = OF_METHODS[load_recipe(path).method.name]
    result = start(path, [*SMALL, *own, f"runs_dir={tmp_path}"], display=Silent())
    assert result.status == "finished"
    assert 0.0 < result.metrics["train/loss"] < 6.0


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_states_every_field_of_its_method(path: Path) -> None:
    method = load_recipe(path).method
    stated = yaml.safe_load(path.read_text())["method"]
    assert set(method.dump()) == set(stated)


@pytest.mark.parametrize("method", ["simmim", "data2vec"])
def test_the_cpu_recipes_differ_in_method_and_crops_alone(method: str) -> None:
    own, other = (
        yaml.safe_load(find_recipe(f"cpu/{method}_cifar10_short").read_text())
        for method in ("mae", method)
    )
    for recipe in (own, other):
        del recipe["name"], recipe["method"], recipe["augmentation"]
        recipe.pop("callbacks", None)
    assert own == other


def test_imports_are_those_that_a_plugin_may_have() -> None:
    allowed = {"sslkit", "sslkit.api", "sslkit.errors", "sslkit.randomness"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslkit."):
                module = node.module or ""
                assert module in allowed or module.startswith("sslkit.nn."), f"{path}: {module}"
