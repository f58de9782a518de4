"""The JSON Schema of recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from broken_recipes import BROKEN_RECIPES, GOOD
from plugin_distributions import Install

import sslkit
from sslkit.api import INTERFACES
from sslkit.host.plugins import load_plugins
from sslkit.recipe import dump_resolved, json_schema, parse_recipe
from sslkit.recipe.yaml_positions import parse_document

PLUGIN = """
    from sslkit import hookimpl
    @hookimpl
    def register_losses(): return {"fine": "schema_parts:Fine", "absent": "schema_parts:Absent"}
"""
PARTS = '''
    from sslkit.api import ComponentConfig, Loss
    class Nested(ComponentConfig):
        x: int = 0
        """The x of it."""
    class Fine(Loss):
        """A fine loss.

        With details."""
        class Config(ComponentConfig):
            nested: Nested = Nested()
            """Something nested."""
        def forward(self, inputs): return inputs.views[0].sum()
'''


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return found.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(item) for item in node))
    return set()


def resolve(schema: dict[str, Any], reference: str) -> Any:
    node: Any = schema
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def test_the_schema_covers_all_kinds_and_every_reference_resolves() -> None:
    schema = json_schema(load_plugins().registry)
    json.dumps(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert "train" in schema["required"]
    assert {interface.kind for interface in INTERFACES} <= set(schema["$defs"])
    assert schema["properties"]["method"]["$ref"] == "#/$defs/method"
    assert schema["properties"]["seed"]["description"] == "Seed of everything random."
    for reference in references(schema):
        assert resolve(schema, reference)
    assert "sslkit_kind" not in json.dumps(schema)


def test_the_schema_covers_plugins_and_leaves_broken_components_out(install: Install) -> None:
    install("schemer", {"schema_plugin.py": PLUGIN, "schema_parts.py": PARTS}, "s = schema_plugin")
    schema = json_schema(load_plugins().registry)
    losses = [resolve(schema, choice["$ref"]) for choice in schema["$defs"]["loss"]["oneOf"]]
    names = {name for loss in losses for name in loss["properties"]["name"]["enum"]}
    assert {"fine", "schemer:fine", "nt_xent", "sslkit:nt_xent"} <= names
    assert "absent" not in names
    (fine,) = [loss for loss in losses if "fine" in loss["properties"]["name"]["enum"]]
    assert fine["description"] == "A fine loss."
    assert fine["required"] == ["name"]
    assert fine["additionalProperties"] is False
    nested = resolve(schema, fine["properties"]["nested"]["$ref"])
    assert nested["properties"]["x"]["description"] == "The x of it."


CHECKOUT = Path(sslkit.__file__).parent.parent / "recipes"


def test_an_editor_would_accept_good_recipes_and_mark_broken_ones() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json_schema(load_plugins().registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    texts = [GOOD, dump_resolved(parse_recipe(GOOD, "x"))]
    texts += [path.read_text() for path in CHECKOUT.rglob("*.yaml")]
    for text in texts:
        errors = list(validator.iter_errors(parse_document(text, "x").tree))
        assert not errors, errors
    # What types can express, the schema refuses.
    for name in (
        "misspelt top-level field",
        "misspelt component",
        "missing field",
        "out of range",
        "text for a number",
        "quoted number",
        "yes for a boolean",
        "block for a list",
    ):
        (broken,) = [broken for broken in BROKEN_RECIPES if broken.name == name]
        assert isinstance(broken.text, str)
        assert not validator.is_valid(parse_document(broken.text, "x").tree), name
