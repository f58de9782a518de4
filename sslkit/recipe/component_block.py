"""A component that a program names, in place of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sslkit import installed_components
from sslkit.api import INTERFACES, Slot, resolve_component
from sslkit.errors import RecipeError
from sslkit.host.registry import did_you_mean

_KINDS = tuple(interface.kind for interface in INTERFACES)


def name_component(kind: str, name: str, fields: Mapping[str, Any]) -> Slot[Any]:
    """The component of a block of a recipe, `{name: ..., **fields}`. Raises RecipeError, one line
    for each problem, and PluginError for a name that nothing provides."""
    if kind not in _KINDS:
        guess = did_you_mean(kind, _KINDS)
        raise RecipeError(
            f"'{kind}' is no kind of component{guess or '.'} Valid: {_listed(_KINDS)}"
        )
    registry = installed_components()
    known = tuple(registry.resolve(kind, name).cls.Config.model_fields)
    try:
        return resolve_component(registry, kind, {**fields, "name": name})
    except ValidationError as error:
        raise RecipeError(*(_line(kind, name, each, known) for each in error.errors())) from error


def _line(kind: str, name: str, problem: Any, known: tuple[str, ...]) -> str:
    path = problem["loc"]
    where = ".".join([f"{kind} '{name}'", *map(str, path)])
    if problem["type"] == "missing":
        return f"{where}: is required"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    if len(path) > 1:  # of a component inside this one
        return f"{where}: unknown field"
    guess = did_you_mean(path[0], known)
    return f"{where}: unknown field{guess or '.'} Valid: {_listed(known)}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
