"""What the package ships: recipes that load and run, and imports that any plugin may have."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import sslkit_cluster
import yaml

from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

PACKAGE = Path(sslkit_cluster.__file__).parent
RECIPES = sorted((PACKAGE / "recipes").rglob("*.yaml"))
SMALL = [
    "data={name: synthetic, num_train: 32, num_test: 16, size: 16}",
    "augmentation.size=16",
    "train.precision=fp32",  # maps of 16 px end at 1x1, where torch's bf16 on CPUs has a fault
    "backbone={name: timm, model: test_resnet}",
    "train.batch_size=16",
    "train.max_steps=2",
    "train.epochs=1",
    "train.compile=false",
    "train.device=cpu",
    "schedule={name: constant}",
    "evaluate=[]",
    "expect={}",
    "tracking={name: none}",
]
"""What a recipe needs to take two steps in a second."""


def name(path: Path) -> str:
    return path.relative_to(PACKAGE / "recipes").with_suffix("").as_posix()


def test_every_recipe_is_found_by_its_name() -> None:
    shipped = shipped_recipes()
    assert len(RECIPES) >= 10
    for path in RECIPES:
        assert shipped[name(path)].samefile(path)
        assert "# Expected: " in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_takes_steps(path: Path, tmp_path: Path) -> None:
    crops = ["augmentation.views.1.size=12"] if "role: local" in path.read_text() else []
    result = start(path, [*SMALL, *crops, f"runs_dir={tmp_path}"], display=Silent())
    assert result.status == "finished"
    assert math.isfinite(result.metrics["train/loss"])


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_states_every_field_of_its_method(path: Path) -> None:
    """But for the scale of the loss where that is 1."""
    method = load_recipe(path).method
    stated = yaml.safe_load(path.read_text())["method"]
    silent = {field: value for field, value in method.dump().items() if field not in stated}
    assert silent.items() <= {"loss_weight": 1.0, "passes": "joint"}.items()


@pytest.mark.parametrize("method", ["dcl", "nnclr", "swav"])
def test_the_cpu_recipe_differs_from_its_sibling_in_the_method_alone(method: str) -> None:
    own, other = (
        yaml.safe_load(find_recipe(f"cpu/{found}_cifar10_short").read_text())
        for found in (method, "simclr")
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
