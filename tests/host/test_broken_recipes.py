"""Every mistake in the table is answered in precise lines, all at once, without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_recipes import BROKEN_RECIPES, GOOD, BrokenRecipe

from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import Registry
from sslkit.recipe import load_recipe


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins().registry


def test_the_table_is_long_enough_and_starts_from_a_good_recipe(
    tmp_path: Path, registry: Registry
) -> None:
    assert len(BROKEN_RECIPES) >= 30
    assert len({broken.name for broken in BROKEN_RECIPES}) == len(BROKEN_RECIPES)
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert load_recipe(path, registry=registry).train.epochs == 2


@pytest.mark.parametrize("broken", BROKEN_RECIPES, ids=lambda broken: broken.name)
def test_a_broken_recipe_is_explained(
    broken: BrokenRecipe, tmp_path: Path, registry: Registry
) -> None:
    path = tmp_path / "recipe.yaml"
    text = broken.text
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as error:
        load_recipe(path, broken.overrides, registry)
    problems = error.value.problems
    message = "\n".join(problems)
    for expected in broken.expected:
        assert expected.replace("FILE", str(path)) in message
    assert len(problems) == broken.lines, message
    for problem in problems:
        assert "\n" not in problem
        assert problem.startswith((str(path), "-o "))
