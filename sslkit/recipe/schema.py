"""The JSON Schema of recipes, installed plugins included, for editors.

Its form follows from what editors do with it: the component of a block is chosen by `if` its name,
so that messages and completions are those of that component alone; every field says in words what
it takes, and its default; and what two types of a field have in common is written as one type,
since an editor names only the first that does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from sslkit.api import INTERFACES
from sslkit.api.schedules import SCHEDULED
from sslkit.errors import PluginError
from sslkit.host.field_types import type_words, value_words
from sslkit.host.registry import Entry, Registry

from .model import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "sslkit recipe"
_ENDS = {
    "start": {"type": "number", "description": "The number where the factor is 1."},
    "end": {"type": "number", "description": "The number where the factor is 0."},
}
_AS_THEY_ARE = ("default", "const", "enum", "examples", "required")
"""Keywords whose content is no schema."""


def json_schema(registry: Registry) -> dict[str, Any]:
    """One JSON Schema (draft 2020-12). `$defs/<kind>` holds every component of a kind; components
    that cannot be imported are left out."""
    definitions: dict[str, Any] = {}
    schema = _model_schema(Recipe, "recipe", definitions)
    for interface in INTERFACES:
        choices = [_Choice(entry, registry) for entry in registry.entries(interface.kind)]
        choices = [choice for choice in choices if choice.cls is not None]
        for choice in choices:
            definitions[choice.key] = _component_schema(choice, definitions)
        definitions[interface.kind] = _any_of(interface.kind, choices)
        if interface.kind == "schedule":
            _add_scheduled_numbers(choices, definitions)
    title = {"title": TITLE, "description": _in_one_line(Recipe.__doc__)}
    return {"$schema": DIALECT, **schema, **title, "$defs": dict(sorted(definitions.items()))}


class _Choice:
    """A component that a block may name."""

    def __init__(self, entry: Entry, registry: Registry) -> None:
        self.qualified = entry.qualified
        self.key = f"{entry.kind}.{entry.qualified}"
        self.short = None if registry.is_ambiguous(entry.kind, entry.name) else entry.name
        self.origin = f"{entry.kind} of {entry.distribution} {entry.version}"
        self.cls: Any = None
        try:
            self.cls = registry.resolve(entry.kind, entry.qualified).cls
        except PluginError:
            return
        doc = _in_one_line((self.cls.__doc__ or "").strip().partition("\n\n")[0])
        self.about = f"{doc} ({self.origin})" if doc else self.origin

    @property
    def name(self) -> str:
        """As a recipe would have it."""
        return self.short or self.qualified

    @property
    def names(self) -> list[str]:
        """Every name that means it."""
        return list(dict.fromkeys((self.name, self.qualified)))


def _any_of(kind: str, choices: Sequence[_Choice], prefix: str = "") -> dict[str, Any]:
    """The block of any component of a kind: what stands under `then` depends on its name."""
    if not choices:
        return {"not": {}, "description": f"No installed package provides a {kind}."}
    listed = [choice.name for choice in choices]
    qualified = [re.escape(c.qualified) for c in choices if c.short]
    name: dict[str, Any] = {
        "description": f"The {kind}: {', '.join(listed)}.",
        "enum": listed,
        "enumDescriptions": [choice.about for choice in choices],
    }
    if qualified:  # valid as well, and not worth a completion
        short = {key: name.pop(key) for key in ("enum", "enumDescriptions")}
        name["anyOf"] = [short, {"type": "string", "pattern": f"^({'|'.join(qualified)})$"}]
    return {
        "title": f"{kind} block",
        "type": "object",
        "required": ["name"],
        "properties": {"name": name},
        "allOf": [
            {
                "if": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"enum": choice.names}},
                },
                "then": {"$ref": _reference(f"{prefix}{choice.key}")},
            }
            for choice in choices
        ],
    }


def _add_scheduled_numbers(choices: Sequence[_Choice], definitions: dict[str, Any]) -> None:
    """`$defs/scheduled number`: the block of any schedule, with the numbers at its ends."""
    prefix = f"{SCHEDULED}."
    for choice in choices:
        schema = definitions[choice.key]
        name, *fields = schema["properties"].items()
        definitions[f"{prefix}{choice.key}"] = {
            **schema,
            "properties": dict([name, *_ENDS.items(), *fields]),
            "required": [*schema["required"], *_ENDS],
        }
    block = _any_of("schedule", choices, prefix)
    if choices:
        block["required"] = ["name", *_ENDS]
        block["examples"] = [{"name": choices[0].name, "start": 0.996, "end": 1.0}]
    definitions[SCHEDULED] = block


def _component_schema(choice: _Choice, definitions: dict[str, Any]) -> dict[str, Any]:
    try:
        schema = _model_schema(choice.cls.Config, choice.key, definitions)
    except Exception:  # a plugin's type that has no schema: its block may hold anything
        schema = {"type": "object"}
    schema["properties"] = {"name": {"description": choice.about}, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    schema["title"] = choice.name
    schema["description"] = choice.about
    return schema


def _model_schema(
    model: type[BaseModel], prefix: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    """The schema of a model; its own definitions go to `definitions` under prefixed names."""
    schema = model.model_json_schema()
    nested = schema.pop("$defs", {})
    renamed = {_reference(name): _reference(f"{prefix}/{name}") for name in nested}
    for name, definition in nested.items():
        definitions[f"{prefix}/{name}"] = _rewritten(_described(definition, nested), renamed)
    result: dict[str, Any] = _rewritten(_described(schema, nested), renamed)
    return result


def _described(model: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a model whose fields say what they take and what they are by default. nested:
    the models of its blocks, which speak for a field that repeats them."""
    required = model.get("required", ())
    fields = {}
    for name, spec in model.get("properties", {}).items():
        field = {key: value for key, value in spec.items() if key != "title"}
        default = "required" if name in required else f"default: {value_words(spec.get('default'))}"
        if not spec.get("deprecated"):
            block = nested.get(spec.get("$ref", "").rpartition("/")[2], {})
            about = _in_one_line(spec.get("description") or block.get("description"))
            field["description"] = f"{about}\n\n{type_words(spec)}; {default}".strip()
        fields[name] = field
    return {**model, "properties": fields}


def _in_one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _rewritten(node: Any, renamed: dict[str, str]) -> Any:
    """A schema with renamed references, with references in the place of component slots, and with
    one type where there were several that can be said as one."""
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
        elif key in _AS_THEY_ARE:
            result[key] = value
        elif key == "anyOf":
            options = [_rewritten(option, renamed) for option in value]
            result.update(_in_one_type(options) or {key: options})
        else:
            result[key] = _rewritten(value, renamed)
    return result


def _in_one_type(options: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One schema for `true`, `false` and some words, or for a type and null; None for others."""
    words = [list(_words(option)) for option in options]
    if all(words):
        return {"enum": [word for each in words for word in each]}
    given = [option for option in options if option != {"type": "null"}]
    if len(given) == 1 and len(options) == 2 and isinstance(given[0].get("type"), str):
        return {**given[0], "type": [given[0]["type"], "null"]}
    return None


def _words(option: Mapping[str, Any]) -> Iterator[Any]:
    """The values of a type that has few."""
    if option == {"type": "boolean"}:
        yield from (True, False)
    elif option == {"type": "null"}:
        yield None
    elif "const" in option:
        yield option["const"]
    else:
        yield from option.get("enum", ())


def _reference(name: str) -> str:
    escaped = name.replace("~", "~0").replace("/", "~1")
    return f"#/$defs/{escaped}"
