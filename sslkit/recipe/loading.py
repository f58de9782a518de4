"""From a file and overrides to a validated recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.recipe_files import find_recipe, read_recipe_text
from sslkit.host.registry import Registry

from .fields import Place
from .model import Recipe
from .overrides import apply_overrides
from .problems import validation_problems
from .yaml_positions import SHOWN_PROBLEMS, Document, more_problems, parse_document


def load_recipe(
    source: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """Reads a recipe file, or a shipped recipe by its name, and validates it.

    overrides: `"train.epochs=5"` and the like, applied in order before validation.
    registry: the components to choose from; by default those of all installed plugins.
    Raises RecipeError with every problem, one line each."""
    path = find_recipe(source)
    return parse_recipe(read_recipe_text(path), os.fspath(path), overrides, registry)


def read_field(source: Path | str, field: str, overrides: Sequence[str] = ()) -> Any:
    """What a recipe file and overrides say in one of its fields, not validated: overrides that need
    it may have to complete the recipe first. None where they leave the field out; overrides with a
    problem change nothing. Raises RecipeError where the file is no recipe at all."""
    path, registry = find_recipe(source), load_plugins().registry
    document = parse_document(read_recipe_text(path), os.fspath(path))
    _qualify_names(document, registry)
    apply_overrides(document, overrides, registry)
    return document.tree.get(field)


def parse_recipe(
    text: str, source: str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """The same for the text of a recipe; source is what messages call it."""
    document = parse_document(text, source)
    registry = registry or load_plugins().registry
    _qualify_names(document, registry)
    problems = apply_overrides(document, overrides, registry)
    recipe, error = None, None
    try:
        recipe = Recipe.model_validate(document.tree, context={"registry": registry})
    except ValidationError as found:
        error = found
    problems += validation_problems(error, document, registry)
    if recipe is not None:
        problems += _unmeasured_expectations(recipe, document, registry)
    if recipe is None or problems:
        raise RecipeError(*problems)
    return recipe.with_marks(document.marks)


def _qualify_names(document: Document, registry: Registry) -> None:
    """Lets a resolved recipe keep its meaning: where its `origins` name another distribution than
    the plain name now stands for (a second plugin claims it, or the first is gone), the name is
    qualified, so that it means the same component or is refused."""
    origins = document.tree.get("origins")
    for dotted, origin in origins.items() if isinstance(origins, dict) else ():
        place: Place | None = Place(Recipe, document.tree, registry)
        for part in dotted.split("."):
            if place is not None:
                place = place.child(int(part) if part.isdecimal() else part)
        kind = place.kind() if place is not None else None
        block = place.value if place is not None else None
        if kind is None or not isinstance(block, dict) or not isinstance(origin, dict):
            continue
        name, distribution = block.get("name"), origin.get("distribution")
        claimants = {e.distribution for e in registry.entries(kind) if e.name == name}
        if isinstance(distribution, str) and claimants - {distribution}:
            block["name"] = f"{distribution}:{name}"


def _unmeasured_expectations(recipe: Recipe, document: Document, registry: Registry) -> list[str]:
    """Expected metrics of protocols that are installed and that the recipe does not run."""
    chosen = {slot.name.rpartition(":")[2] for slot in recipe.evaluate}
    known = {entry.name for entry in registry.entries("evaluator")}
    problems = []
    for metric in recipe.expect:
        parts = metric.split("/")
        if parts[0] == "eval" and len(parts) > 2 and parts[1] in known - chosen:
            message = f"nothing measures it: '{parts[1]}' is not listed under evaluate"
            problems.append(document.marks.line(("expect", metric), message, key=True))
    return problems[:SHOWN_PROBLEMS] + more_problems(len(problems), document.marks.source)
