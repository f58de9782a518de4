"""Every recipe of the repository loads, and so does every piece of a recipe on a page."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pages import REPOSITORY, Block, all_blocks, name

from sslkit.recipe import load_recipe, shipped_recipes
from sslkit.report.listing import about

RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
YAML = [block for block in all_blocks() if block.language == "yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_shipped_recipe_loads_and_says_what_it_is(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.evaluate
    assert about(path)
    assert path in shipped_recipes().values()


def complete_recipes() -> list[Block]:
    return [block for block in YAML if block.marks.get("recipe") == "complete"]


@pytest.mark.parametrize("block", complete_recipes(), ids=str)
def test_a_complete_recipe_on_a_page_loads(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(block.text, encoding="utf-8")
    load_recipe(path)


def test_there_are_complete_recipes_on_the_pages() -> None:
    assert complete_recipes()


@pytest.mark.parametrize("block", [b for b in YAML if not b.marks], ids=str)
def test_a_piece_of_a_recipe_fits_into_a_recipe(block: Block) -> None:
    piece = yaml.safe_load(block.text)
    load_recipe("quickstart", [f"{key}={json.dumps(value)}" for key, value in piece.items()])


@pytest.mark.parametrize("block", [b for b in all_blocks() if "same as" in b.marks], ids=str)
def test_a_copy_on_a_page_equals_its_file(block: Block) -> None:
    assert block.text == (REPOSITORY / block.marks["same as"]).read_text(encoding="utf-8")


def commands_with_overrides() -> list[tuple[str, list[str]]]:
    return [
        (str(block), shlex.split(line)[2:])
        for block in all_blocks()
        if block.language == "bash" and "run" not in block.marks
        for line in block.text.splitlines()
        if line.startswith("sslkit run ") and " -o " in line
    ]


@pytest.mark.parametrize(("where", "words"), commands_with_overrides(), ids=str)
def test_the_overrides_on_a_page_are_valid(where: str, words: list[str]) -> None:
    given = Path(words[0]).with_suffix("").as_posix().removeprefix("recipes/")
    shipped = given if given in shipped_recipes() else "quickstart"
    load_recipe(shipped, [value for key, value in pairwise(words) if key == "-o"])
