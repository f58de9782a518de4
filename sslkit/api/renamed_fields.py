"""Fields of a `Config` that had another name: old recipes, overrides and run folders keep working.

    class Config(ComponentConfig):
        temperature: Annotated[PositiveFloat, RenamedFrom("tau", ends="my-losses 2.0")] = 0.5

A recipe that writes `tau` means `temperature`, is told so in one line, and keeps its hash.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, model_validator

from sslkit.errors import PluginError

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema


class RenamedFrom:
    """Stands in the `Annotated` of a field: the names that it had, the first one first."""

    def __init__(self, *names: str, ends: str = "") -> None:
        """ends: the release that no longer takes them, such as "my-losses 2.0", for the warning."""
        self.names = names
        self.ends = ends

    def advice(self, name: str) -> str:
        """What to do for a field that is called `name` now."""
        until = f", the old name ends with {self.ends}" if self.ends else ""
        return f"is called {name} now: write that{until}"


@cache
def renamed_fields(model: type[BaseModel]) -> Mapping[str, tuple[str, RenamedFrom]]:
    """Old name -> (name of today, what its field says of it). Raises PluginError where an old name
    is a field, or that of two fields."""
    found: dict[str, tuple[str, RenamedFrom]] = {}
    for name, field in model.model_fields.items():
        for renamed in field.metadata:
            for old in renamed.names if isinstance(renamed, RenamedFrom) else ():
                other = old if old in model.model_fields else found.get(old, (None,))[0]
                if other is not None:
                    raise PluginError(
                        f"has '{old}' as an old name of the Config field '{name}', and it is one "
                        f"of '{other}' too: take it out of RenamedFrom"
                    )
                found[old] = (name, renamed)
    return found


def first_names(model: type[BaseModel]) -> dict[str, str]:
    """Name of today -> the first name of each field that had others: what a recipe is hashed by."""
    found: dict[str, str] = {}
    for old, (name, _) in renamed_fields(model).items():
        found.setdefault(name, old)
    return found


class Renamable(BaseModel):
    """A block of fields, some of which may have had other names."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, values: Any) -> Any:
        return _with_names_of_today(cls, values)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _add_old_names(cls, handler.resolve_ref_schema(handler(schema)))


def _with_names_of_today(model: type[BaseModel], values: Any) -> Any:
    """The values of a block under the names of today. Recipes are renamed before they come here,
    where their lines are known; this is for configs made in Python, whose author is warned."""
    renamed = renamed_fields(model)
    if not isinstance(values, Mapping) or not any(old in values for old in renamed):
        return values
    result = {}
    for key, value in values.items():
        name, how = renamed.get(key, (key, None))
        if how is not None:
            if name in values:
                raise ValueError(f"{key}: is an old name of {name}, which is given too: remove it")
            text = f"{model.__qualname__}: {key} {how.advice(name)}"
            warnings.warn(text, DeprecationWarning, stacklevel=4)
        result[name] = value
    return result


def _add_old_names(model: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema that takes the old names too, marked as deprecated."""
    for old, (name, how) in renamed_fields(model).items():
        properties, advice = schema["properties"], f"{old} {how.advice(name)}"
        text = {"description": f"Old name: {advice}.", "deprecationMessage": advice}
        field = {key: value for key, value in properties[name].items() if key != "default"}
        properties[old] = {**field, "title": old, "deprecated": True, **text}
        if name in schema.get("required", ()):
            schema["required"].remove(name)
            old_names = [each for each, (new, _) in renamed_fields(model).items() if new == name]
            either = {"anyOf": [{"required": [each]} for each in (name, *old_names)]}
            schema["allOf"] = [*schema.get("allOf", ()), either]
    return schema
