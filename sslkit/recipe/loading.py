"""From a file and overrides to a validated recipe.

An override, `method.loss.temperature=0.2`, changes a value before the recipe is validated:

- A list is reached by index (`evaluate.0.k=20`) or replaced (`evaluate=[]`).
- A new component name (`method.loss.name=info_nce`) replaces the whole block, because the fields
  of one component mean nothing to another; later overrides fill the new block.
- A block that the file leaves to its default is filled with the default first.
"""

from __future__ import annotations

import copy
import functools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from sslkit.errors import PluginError, RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.recipe_files import find_recipe, read_recipe_text
from sslkit.host.registry import Registry

from .fields import Place
from .model import Recipe
from .problems import validation_problems
from .unknown import UnknownFields
from .yaml_positions import (
    SHOWN_PROBLEMS,
    Document,
    Mark,
    Path,
    describe,
    more_problems,
    override_line,
    parse_document,
    parse_value,
)


def load_recipe(
    source: pathlib.Path | str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """Reads a recipe file, or a shipped recipe by its name, and validates it.

    overrides: `"train.epochs=5"` and the like, applied in order before validation.
    registry: the components to choose from; by default those of all installed plugins.
    Raises RecipeError with every problem, one line each."""
    path = find_recipe(source)
    return parse_recipe(read_recipe_text(path), os.fspath(path), overrides, registry)


def read_field(source: pathlib.Path | str, field: str, overrides: Sequence[str] = ()) -> Any:
    """What a recipe file and overrides say in one of its fields, not validated: overrides that need
    it may have to complete the recipe first. None where they leave the field out; overrides with a
    problem change nothing. Raises RecipeError where the file is no recipe at all."""
    path, registry = find_recipe(source), load_plugins().registry
    document = parse_document(read_recipe_text(path), os.fspath(path))
    _qualify_names(document, registry)
    take_old_names(document, registry)
    apply_overrides(document, overrides, registry)
    return document.tree.get(field)


def parse_recipe(
    text: str, source: str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> Recipe:
    """The same for the text of a recipe; source is what messages call it."""
    document = parse_document(text, source)
    registry = registry or load_plugins().registry
    _qualify_names(document, registry)
    problems = take_old_names(document, registry)
    problems += apply_overrides(document, overrides, registry)
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
    """Expected metrics of evaluators that are installed and that the recipe does not run."""
    chosen = {slot.name.rpartition(":")[2] for slot in recipe.evaluate}
    known = {entry.name for entry in registry.entries("evaluator")}
    problems = []
    for metric in recipe.expect:
        parts = metric.split("/")
        if parts[0] == "eval" and len(parts) > 2 and parts[1] in known - chosen:
            message = (
                f"nothing measures it: '{parts[1]}' is not listed under evaluate; list it, or "
                "leave the expectation out (-o expect={})"
            )
            problems.append(document.marks.line(("expect", metric), message, key=True))
    return problems[:SHOWN_PROBLEMS] + more_problems(len(problems), document.marks.source)


# --- Old names of fields --------------------------------------------------------------------------


def take_old_names(document: Document, registry: Registry) -> list[str]:
    """Gives fields that had another name their name of today, and warns of each in one line.
    Returns the problems: of names that are given beside the one of today."""
    return list(_take_old_names(document, Place(Recipe, document.tree, registry), ()))


def _take_old_names(document: Document, place: Place, path: Path) -> Iterator[str]:
    block = place.value
    renamed = place.renamed() if isinstance(block, dict) else {}
    for old in [key for key in block if key in renamed] if renamed else ():
        name, how = renamed[old]
        if name in block:
            message = f"is an old name of {name}, which is given too: remove it"
            yield document.marks.line((*path, old), message, key=True)
            del block[old]
            continue
        warn_of_old_name(document, (*path, old), how.advice(name))
        document.marks.move((*path, old), (*path, name))
        items = [(name if key == old else key, value) for key, value in block.items()]
        block.clear()
        block.update(items)
    keys: Iterable[str | int] = block if isinstance(block, dict) else range(len(block))
    for key in list(keys):
        child = place.child(key)
        if child is not None and isinstance(child.value, (dict, list)):
            yield from _take_old_names(document, child, (*path, key))


def warn_of_old_name(document: Document, path: Path, advice: str) -> None:
    """One line for an old name: where it stands; for those of all saved runs, one together."""
    if "origins" in document.tree and not document.marks.find(path, key=True).override:
        text = f"{'.'.join(map(str, path))} of saved runs {advice}"
    else:
        text = document.marks.line(path, advice, key=True)
    warn_once(text)


@functools.cache
def warn_once(text: str) -> None:
    """Commands read a recipe several times. What Python itself remembers of warnings it forgets
    wherever a library changes their filters."""
    warnings.warn(text, FutureWarning, stacklevel=2)


# --- Overrides ------------------------------------------------------------------------------------


def apply_overrides(document: Document, overrides: Sequence[str], registry: Registry) -> list[str]:
    """Changes the document. Returns the problems; an override with a problem changes nothing."""
    problems, found = [], 0
    for override in overrides:
        try:
            _apply(document, override, registry)
            problems += take_old_names(document, registry)
        except (_OverrideError, _UnknownFieldError) as error:
            found += 1
            if found <= SHOWN_PROBLEMS:
                message = _override_message(error, override, document, registry)
                problems.append(override_line(override, message))
    return problems + more_problems(found, "-o")


def _override_message(
    error: Exception, override: str, document: Document, registry: Registry
) -> str:
    if not isinstance(error, _UnknownFieldError):
        return str(error)
    message = UnknownFields(Place(Recipe, document.tree, registry)).explain(error.path)
    dotted = ".".join(map(str, error.path))
    return message if override.partition("=")[0].strip() == dotted else f"{dotted}: {message}"


class _OverrideError(Exception):
    """Why an override cannot be applied."""


class _UnknownFieldError(Exception):
    """A part of the path of an override is no field."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


def _apply(document: Document, override: str, registry: Registry) -> None:
    parts, value = _parse(override)
    tree = copy.deepcopy(document.tree)  # stays as it is where the override turns out wrong
    node, place, path, filled = _descend(tree, parts[:-1], registry)
    key = _key(node, parts[-1], place, path)
    marks, mark = document.marks, Mark(override=override)
    if key != parts[-1] and parts[-1] in place.renamed():
        advice = place.renamed()[parts[-1]][1].advice(str(key))
        warn_once(override_line(override, advice))
    if key == "name" and place.is_component and _is_other(place, node, value):
        node.clear()
        marks.forget(path)
        marks.values[path] = mark
    node[key] = value
    marks.forget((*path, key))
    for changed in (*filled, (*path, key)):
        marks.keys[changed] = marks.values[changed] = mark
    document.tree = tree


def _parse(override: str) -> tuple[list[str], Any]:
    """The parts of the path, and the value. Raises _OverrideError."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise _OverrideError("expected PATH=VALUE, such as train.epochs=5")
    try:
        return dotted.strip().split("."), parse_value(text)
    except ValueError as error:
        raise _OverrideError(str(error)) from error


def _descend(
    tree: dict[str, Any], parts: Sequence[str], registry: Registry
) -> tuple[Any, Place, Path, list[Path]]:
    """The node that a path leads to, its place and path, and the blocks on the way that the file
    leaves out: these are filled with their defaults. Raises as `_key` does."""
    node: Any = tree
    place = Place(Recipe, tree, registry)
    path: Path = ()
    filled: list[Path] = []
    for part in parts:
        key = _key(node, part, place, path)
        path = (*path, key)
        child = place.child(key) or Place(Any, None, registry)
        if isinstance(node, dict) and node.get(key) is None:
            default = child.value
            node[key] = copy.deepcopy(default) if isinstance(default, (dict, list)) else {}
            filled.append(path)
        node = node[key]
        place = Place(child.annotation, node, registry, child.doc)
    return node, place, path, filled


def _key(node: Any, part: str, place: Place, path: Path) -> str | int:
    """The key or index that `part` stands for in a node. Raises _OverrideError and
    _UnknownFieldError."""
    where = ".".join(map(str, path)) or "the recipe"
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        valid = f"0 to {len(node) - 1}" if node else "none"
        raise _OverrideError(
            f"{where} is a list of {len(node)}, '{part}' is not an index of it. Valid: {valid}; "
            f"or replace the list: {where}=[...]"
        )
    if not isinstance(node, dict):
        raise _OverrideError(f"{where} is {describe(node)} and has no fields")
    keys, part = place.keys(), place.renamed().get(part, (part,))[0]
    if keys is not None and part not in keys:
        raise _UnknownFieldError((*path, part))
    return part


def _is_other(place: Place, block: dict[str, Any], name: Any) -> bool:
    """Whether a name stands for another component than the one that the block names."""
    given = block.get("name")
    if name == given or not isinstance(name, str) or not isinstance(given, str):
        return bool(name != given)
    try:
        kind = place.kind()
        return kind is None or place.registry.find(kind, name) != place.registry.find(kind, given)
    except PluginError:
        return True
