"""What the package ships: recipes that load and run, and imports that any plugin may have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sslkit_series
from series_setup import run

from sslkit.recipe import load_recipe, shipped_recipes

PACKAGE = Path(sslkit_series.__file__).parent
RECIPES = sorted((PACKAGE / "recipes").rglob("*.yaml"))
SMALL = [
    "data.num_train=32",
    "data.num_test=16",
    "train.batch_size=16",
    "train.max_steps=2",
    "train.epochs=1",
    "train.device=cpu",
    "schedule.warmup_epochs=0",
    "evaluate=[{name: knn, k: 3}]",
    "expect={}",
    "tracking={name: none}",
]
"""What a recipe needs to take two steps in a second."""


def name(path: Path) -> str:
    return path.relative_to(PACKAGE / "recipes").with_suffix("").as_posix()


def test_every_recipe_is_found_by_its_name() -> None:
    shipped = shipped_recipes()
    assert len(RECIPES) == 3
    for path in RECIPES:
        assert shipped[name(path)].samefile(path)
        assert "# Expected: " in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_takes_steps(path: Path, tmp_path: Path) -> None:
    result = run(path, *SMALL, f"runs_dir={tmp_path}")
    assert result.status == "finished"
    assert 0.0 < result.metrics["train/loss"] < 8.0
    assert "eval/knn/top1" in result.metrics


def test_recipes_differ_in_the_method_alone() -> None:
    first, *others = (load_recipe(path).model_dump(mode="json") for path in RECIPES)
    for other in others:
        differ = {key for key in first if first[key] != other[key]}
        assert differ <= {"name", "method", "expect", "origins"}


def test_imports_are_those_that_a_plugin_may_have() -> None:
    allowed = {"sslkit", "sslkit.api", "sslkit.errors", "sslkit.randomness"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslkit."):
                module = node.module or ""
                assert module in allowed or module.startswith("sslkit.nn."), f"{path}: {module}"
