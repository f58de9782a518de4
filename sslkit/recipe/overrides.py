"""Overrides: `method.loss.temperature=0.2` changes a value of a recipe before it is validated.

- A list is reached by index (`evaluate.0.k=20`) or replaced (`evaluate=[]`).
- A new component name (`method.loss.name=info_nce`) replaces the whole block, because the fields
  of one component mean nothing to another; later overrides fill the new block.
- A block that the file leaves to its default is filled with the default first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from sslkit.errors import PluginError
from sslkit.host.registry import Registry

from .fields import Place
from .model import Recipe
from .unknown import UnknownFields
from .yaml_positions import (
    SHOWN_PROBLEMS,
    Document,
    Mark,
    Path,
    describe,
    more_problems,
    override_line,
    parse_value,
)


def apply_overrides(document: Document, overrides: Sequence[str], registry: Registry) -> list[str]:
    """Changes the document. Returns the problems; an override with a problem changes nothing."""
    problems, found = [], 0
    for override in overrides:
        try:
            _apply(document, override, registry)
        except (_OverrideError, _UnknownFieldError) as error:
            found += 1
            if found <= SHOWN_PROBLEMS:
                message = _message(error, override, document, registry)
                problems.append(override_line(override, message))
    return problems + more_problems(found, "-o")


def _message(error: Exception, override: str, document: Document, registry: Registry) -> str:
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
        if isinstance(node, dict) and node.get(part) is None:
            default = child.value
            node[part] = copy.deepcopy(default) if isinstance(default, (dict, list)) else {}
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
    keys = place.keys()
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
