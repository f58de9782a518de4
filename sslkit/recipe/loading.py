"""From a file and overrides to a validated recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sslkit.errors import RecipeError
from sslkit.plugins import load_plugins
from sslkit.recipe_files import find_recipe, read_recipe_text
from sslkit.registry import Registry

from .document import Document, parse_document
from .model import Recipe
from .overrides import apply_overrides
from .problems import validation_problems


def load_recipe(
    source: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """Reads a recipe file, or a shipped recipe by its name, and validates it.

    overrides: `"train.epochs=5"` and the like, applied in order before validation.
    registry: the components to choose from; by default those of all installed plugins.
    Raises RecipeError with every problem, one line each."""
    path = find_recipe(source)
    return parse_recipe(read_recipe_text(path), os.fspath(path), overrides, registry)


def parse_recipe(
    text: str, source: str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """The same for the text of a recipe; source is what messages call it."""
    document = parse_document(text, source)
    registry = registry or load_plugins().registry
    _qualify_ambiguous_names(document, registry)
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


def _qualify_ambiguous_names(document: Document, registry: Registry) -> None:
    """Lets a resolved recipe keep its meaning after a second plugin claimed one of its names."""
    origins = document.tree.get("origins")
    for dotted, origin in origins.items() if isinstance(origins, dict) else ():
        node: Any = document.tree
        for part in dotted.split("."):
            if isinstance(node, dict):
                node = node.get(part)
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                node = None
        if not (isinstance(node, dict) and isinstance(origin, dict)):
            continue
        name, distribution = node.get("name"), origin.get("distribution")
        claims = {entry.kind for entry in registry.entries() if entry.name == name}
        if isinstance(distribution, str) and any(
            registry.is_ambiguous(kind, str(name)) for kind in claims
        ):
            node["name"] = f"{distribution}:{name}"


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
    return problems
