"""The JSON Schema of recipes, installed plugins included, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from sslkit.api import INTERFACES
from sslkit.api.schedules import SCHEDULED
from sslkit.errors import PluginError
from sslkit.host.registry import Entry, Registry

from .model import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(registry: Registry) -> dict[str, Any]:
    """One JSON Schema (draft 2020-12). `$defs/<kind>` holds every component of a kind; components
    that cannot be imported are left out."""
    definitions: dict[str, Any] = {}
    schema = _model_schema(Recipe, "recipe", definitions)
    for interface in INTERFACES:
        choices = []
        for entry in registry.entries(interface.kind):
            try:
                cls = registry.resolve(entry.kind, entry.qualified).cls
            except PluginError:
                continue
            key = f"{entry.kind}.{entry.qualified}"
            definitions[key] = _component_schema(cls, entry, registry, definitions)
            choices.append({"$ref": _reference(key)})
        definitions[interface.kind] = {"oneOf": choices} if choices else {"not": {}}
    _add_scheduled_numbers(definitions)
    title = {"title": "sslkit recipe", "description": " ".join((Recipe.__doc__ or "").split())}
    return {"$schema": DIALECT, **schema, **title, "$defs": dict(sorted(definitions.items()))}


def _add_scheduled_numbers(definitions: dict[str, Any]) -> None:
    """`$defs/scheduled number`: the block of any schedule, with the numbers at its ends."""
    ends = {
        "start": {"type": "number", "description": "The number where the factor is 1."},
        "end": {"type": "number", "description": "The number where the factor is 0."},
    }
    choices = []
    for key in [key for key in definitions if key.startswith("schedule.")]:
        schema = definitions[key]
        name, *fields = schema["properties"].items()
        definitions[f"{SCHEDULED}.{key}"] = {
            **schema,
            "properties": dict([name, *ends.items(), *fields]),
            "required": [*schema["required"], *ends],
        }
        choices.append({"$ref": _reference(f"{SCHEDULED}.{key}")})
    definitions[SCHEDULED] = {"oneOf": choices} if choices else {"not": {}}


def _component_schema(
    cls: Any, entry: Entry, registry: Registry, definitions: dict[str, Any]
) -> dict[str, Any]:
    schema = _model_schema(cls.Config, f"{entry.kind}.{entry.qualified}", definitions)
    names = [entry.qualified]
    if not registry.is_ambiguous(entry.kind, entry.name):
        names.insert(0, entry.name)
    origin = f"{entry.distribution} {entry.version}"
    name = {"enum": names, "description": f"{entry.kind} of {origin}"}
    schema["properties"] = {"name": name, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    schema["title"] = f"{entry.kind} {entry.name}"
    doc = (cls.__doc__ or "").strip().partition("\n\n")[0]
    schema["description"] = " ".join(doc.split()) or f"{entry.kind} '{entry.name}' of {origin}"
    return schema


def _model_schema(
    model: type[BaseModel], prefix: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    """The schema of a model; its own definitions go to `definitions` under prefixed names."""
    schema = model.model_json_schema()
    nested = schema.pop("$defs", {})
    renamed = {_reference(name): _reference(f"{prefix}/{name}") for name in nested}
    for name, definition in nested.items():
        definitions[f"{prefix}/{name}"] = _rewritten(definition, renamed)
    result: dict[str, Any] = _rewritten(schema, renamed)
    return result


def _rewritten(node: Any, renamed: dict[str, str]) -> Any:
    """A schema with renamed references, and with references in the place of component slots."""
    if isinstance(node, list):
        return [_rewritten(item, renamed) for item in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "sslkit_kind":
            result["$ref"] = _reference(value)
        elif key == "$ref":
            result[key] = renamed[value]
        elif key in ("default", "const", "enum", "examples"):
            result[key] = value
        else:
            result[key] = _rewritten(value, renamed)
    return result


def _reference(name: str) -> str:
    escaped = name.replace("~", "~0").replace("/", "~1")
    return f"#/$defs/{escaped}"
