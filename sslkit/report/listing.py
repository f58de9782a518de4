"""Lists of plugins, components and recipes, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.errors import PluginError
from sslkit.plugins import KINDS

from .console import print_table
from .fields import type_words

if TYPE_CHECKING:
    from sslkit.plugins import PluginHost
    from sslkit.registry import Registry


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
            "components": {
                name: list(values)
                for name, values in record.components.items()
                if kind in (None, name)
            },
        }
        for record in host.records
    ]


def print_plugins(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of components, then what is broken and why."""
    table = [
        (kind, ", ".join(names), f"{row['distribution']} {row['version']}")
        for row in rows
        if row["status"] == "ok"
        for kind, names in row["components"].items()
        if names
    ]
    print_table(("kind", "names", "from"), table)
    for row in rows:
        if row["status"] != "ok":
            print(
                f"broken: {row['plugin']} ({row['distribution']} {row['version']}): {row['reason']}"
            )


def component_fields(registry: Registry, name: str) -> list[dict[str, Any]]:
    """What a component's `Config` holds. name: `nt_xent`, or `loss:nt_xent` where kinds differ.

    Raises PluginError for an unknown one."""
    kind, _, bare = name.rpartition(":")
    if kind and kind not in KINDS:
        kind, bare = "", name  # `distribution:name`
    kinds = [kind] if kind else [k for k in KINDS if _provides(registry, k, bare)]
    if not kinds:
        everything = sorted({n for k in KINDS for n in registry.names(k)})
        raise PluginError(
            f"'{name}': no such component; installed: {', '.join(everything)}. "
            "See: sslkit plugins list"
        )
    return [_describe(registry, k, bare) for k in kinds]


def _provides(registry: Registry, kind: str, name: str) -> bool:
    plain = name.rpartition(":")[2]
    if plain not in {entry.name for entry in registry.entries(kind)}:
        return False
    try:
        registry.find(kind, name)
    except PluginError:
        return registry.is_ambiguous(kind, name)  # then the description says what to choose
    return True


def _describe(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    found = registry.resolve(kind, name)
    schema = found.cls.Config.model_json_schema()
    required = set(schema.get("required", ()))
    return {
        "kind": kind,
        "name": name,
        "distribution": found.distribution,
        "version": found.version,
        "description": (found.cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "fields": [
            {
                "field": field,
                "type": type_words(spec),
                "default": "required" if field in required else spec.get("default"),
                "meaning": " ".join(spec.get("description", "").split()),
            }
            for field, spec in schema.get("properties", {}).items()
        ],
    }


def print_components(shown: Sequence[Mapping[str, Any]]) -> None:
    """Each component: what it is, and its fields."""
    for component in shown:
        origin = f"{component['distribution']} {component['version']}"
        print(f"{component['kind']} {component['name']} ({origin}): {component['description']}")
        rows = [
            (field["field"], field["type"], _shown(field["default"]), field["meaning"])
            for field in component["fields"]
        ]
        print_table(("field", "type", "default", "meaning"), rows)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def recipe_rows(recipes: Mapping[str, Path]) -> list[dict[str, str]]:
    """Name, first header line and path of each shipped recipe."""
    return [
        {"name": name, "about": about(path), "path": str(path)}
        for name, path in sorted(recipes.items())
    ]


def about(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def print_recipes(rows: Sequence[Mapping[str, str]]) -> None:
    """A table of recipes."""
    print_table(("recipe", "about"), [(row["name"], row["about"]) for row in rows])
