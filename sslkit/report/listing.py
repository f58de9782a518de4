"""Lists of plugins, components and recipes, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.errors import PluginError
from sslkit.host.field_types import type_words, value_words
from sslkit.host.importable import import_fault
from sslkit.host.plugins import KINDS, components_named
from sslkit.host.recipe_files import is_schema_line

from .console import print_line, print_table, print_text

if TYPE_CHECKING:
    from sslkit.host.plugins import PluginHost
    from sslkit.host.registry import PluginRecord, Registry


_DEEPEST = 3
"""Blocks inside blocks are shown to this depth."""


def plugin_rows(host: PluginHost, kind: str | None = None) -> list[dict[str, Any]]:
    """One row for each installed plugin. Raises PluginError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise PluginError(f"--kind: '{kind}' is not a kind of component; kinds: {', '.join(KINDS)}")
    return [
        {
            "plugin": record.name,
            "distribution": record.distribution,
            "version": record.version,
            "status": "ok" if record.reason is None else "broken",
            "reason": record.reason,
            "unusable": _unusable(host.registry, record, kind),
            "components": {
                name: list(values)
                for name, values in record.components.items()
                if kind in (None, name)
            },
        }
        for record in host.records
    ]


def _unusable(registry: Registry, record: PluginRecord, kind: str | None) -> list[dict[str, str]]:
    """The components of a working plugin that cannot be imported, each with the reason. The
    built-in ones can: reading their text would take longer than all else here."""
    if record.distribution == "sslkit":
        return []
    return [
        {"kind": entry.kind, "component": entry.name, "reason": fault}
        for entry in registry.entries(kind)
        if entry.distribution == record.distribution
        and entry.name in record.components.get(entry.kind, ())
        and (fault := import_fault(entry.target)) is not None
    ]


def print_plugins(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of components, then what is broken or cannot be imported, and why."""
    table = [
        (kind, ", ".join(names), f"{row['distribution']} {row['version']}")
        for row in rows
        if row["status"] == "ok"
        for kind, names in row["components"].items()
        if names
    ]
    print_table(("kind", "names", "from"), table)
    for row in rows:
        origin = f"{row['distribution']} {row['version']}"
        if row["status"] != "ok":
            print_line(f"broken: {row['plugin']} ({origin}): {row['reason']}")
        for each in row["unusable"]:
            what = f"{each['kind']} '{each['component']}'"
            print_line(f"cannot be imported: {what} ({origin}): {each['reason']}")


def component_fields(registry: Registry, name: str) -> list[dict[str, Any]]:
    """What a component's `Config` holds. name: `nt_xent`, or `loss:nt_xent` where kinds differ.

    Raises PluginError for an unknown one."""
    return [_describe(registry, kind, bare) for kind, bare in components_named(registry, name)]


def _describe(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    found = registry.resolve(kind, name)
    schema = found.cls.Config.model_json_schema()
    return {
        "kind": kind,
        "name": name,
        "distribution": found.distribution,
        "version": found.version,
        "description": (found.cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "fields": list(_fields(schema, schema.get("$defs", {}), "")),
    }


def _fields(
    schema: Mapping[str, Any], blocks: Mapping[str, Any], around: str
) -> Iterator[dict[str, Any]]:
    """Every field of a schema, each followed by those of the block that it may hold."""
    required = set(schema.get("required", ()))
    for name, spec in schema.get("properties", {}).items():
        if spec.get("deprecated"):  # an old name; it still works, and nobody is to learn it
            continue
        field = f"{around}{name}"
        yield {
            "field": field,
            "type": type_words(spec),
            "default": "required" if name in required else spec.get("default"),
            "meaning": " ".join(spec.get("description", "").split()),
        }
        if field.count(".") < _DEEPEST:
            for inside, reference in _references(spec, field):
                yield from _fields(blocks[reference.rpartition("/")[2]], blocks, f"{inside}.")


def _references(spec: Mapping[str, Any], field: str) -> Iterator[tuple[str, str]]:
    """(path, reference) of the blocks that a field may hold: itself, or as items (`views.N`)."""
    if "$ref" in spec:
        yield field, spec["$ref"]
    for option in (*spec.get("anyOf", ()), *spec.get("oneOf", ()), *spec.get("allOf", ())):
        yield from _references(option, field)
    if isinstance(spec.get("items"), Mapping):
        yield from _references(spec["items"], f"{field}.N")
    if isinstance(spec.get("additionalProperties"), Mapping):
        yield from _references(spec["additionalProperties"], f"{field}.NAME")


def print_components(shown: Sequence[Mapping[str, Any]]) -> None:
    """Each component: what it is, and its fields."""
    for component in shown:
        origin = f"{component['distribution']} {component['version']}"
        about = f"{component['kind']} {component['name']} ({origin})"
        print_text(f"{about}: {component['description']}")
        meanings = {field["field"]: field["meaning"] for field in component["fields"]}
        rows = [
            (field["field"], field["type"], _default(field, meanings), field["meaning"])
            for field in component["fields"]
        ]
        print_table(("field", "type", "default", "meaning"), rows)


def _default(field: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """The default; for a field of a block that repeats one around it, what stands there."""
    around, _, name = field["field"].rpartition(".")
    repeats = around != "" and meanings.get(name) == field["meaning"]
    return f"that of {name}" if repeats else value_words(field["default"])


def recipe_rows(recipes: Mapping[str, Path]) -> list[dict[str, str]]:
    """Name, first header line and path of each shipped recipe."""
    return [
        {"name": name, "about": about(path), "path": str(path)}
        for name, path in sorted(recipes.items())
    ]


def about(path: Path) -> str:
    """The first comment line of a recipe; where its schema lies is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not is_schema_line(line)), "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def print_recipes(rows: Sequence[Mapping[str, str]]) -> None:
    """A table of recipes."""
    print_table(("recipe", "about"), [(row["name"], row["about"]) for row in rows])
