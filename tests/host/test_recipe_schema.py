"""The JSON Schema of recipes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from broken_recipes import GOOD
from jsonschema import Draft202012Validator
from plugin_distributions import Install

from sslkit.api import INTERFACES
from sslkit.host.plugins import load_plugins
from sslkit.recipe import dump_resolved, json_schema, parse_recipe, shipped_recipes
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
    assert schema["properties"]["seed"]["description"] == (
        "Seed of everything random.\n\nwhole number ≥ 0; default: 0"
    )
    for reference in references(schema):
        assert resolve(schema, reference)
    assert "sslkit_kind" not in json.dumps(schema)


def test_the_schema_covers_plugins_and_leaves_broken_components_out(install: Install) -> None:
    install("schemer", {"schema_plugin.py": PLUGIN, "schema_parts.py": PARTS}, "s = schema_plugin")
    schema = json_schema(load_plugins().registry)
    losses = {
        name: resolve(schema, choice["then"]["$ref"])
        for choice in schema["$defs"]["loss"]["allOf"]
        for name in choice["if"]["properties"]["name"]["enum"]
    }
    assert {"fine", "schemer:fine", "nt_xent", "sslkit:nt_xent"} <= losses.keys()
    assert "absent" not in losses
    short, qualified = schema["$defs"]["loss"]["properties"]["name"]["anyOf"]
    assert {"fine", "nt_xent"} <= set(short["enum"])
    assert short["enumDescriptions"][short["enum"].index("fine")] == (
        "A fine loss. (loss of schemer 1.0)"
    )
    assert re.fullmatch(qualified["pattern"], "schemer:fine")
    assert not re.fullmatch(qualified["pattern"], "schemer:nt_xent")
    fine = losses["fine"]
    assert fine["description"] == "A fine loss. (loss of schemer 1.0)"
    assert fine["required"] == ["name"]
    assert fine["additionalProperties"] is False
    nested = resolve(schema, fine["properties"]["nested"]["$ref"])
    assert nested["properties"]["x"]["description"] == "The x of it.\n\nwhole number; default: 0"


def test_a_type_without_a_schema_spoils_nothing(install: Install) -> None:
    parts = """
        from collections.abc import Callable
        from sslkit.api import ComponentConfig, Loss
        class Fine(Loss):
            class Config(ComponentConfig):
                call: Callable[[int], int] = abs
            def forward(self, inputs): return inputs.views[0].sum()
        Absent = Fine
    """
    install("schemer", {"schema_plugin.py": PLUGIN, "schema_parts.py": parts}, "s = schema_plugin")
    definitions = json_schema(load_plugins().registry)["$defs"]
    loose = definitions["loss.schemer:fine"]
    assert loose["type"] == "object"
    assert "additionalProperties" not in loose
    assert "loss.sslkit:nt_xent" in definitions


SHIPPED = shipped_recipes()


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema(load_plugins().registry)


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(validator: Draft202012Validator, text: str) -> list[tuple[str, str]]:
    """(dotted path, message) of what an editor would mark."""
    return [
        (".".join(map(str, error.absolute_path)), error.message)
        for error in validator.iter_errors(parse_document(text, "x").tree)
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_an_editor_accepts_every_shipped_recipe(name: str, validator: Draft202012Validator) -> None:
    """Those of the core and of the plugins, as they are and written out in full."""
    text = SHIPPED[name].read_text(encoding="utf-8")
    assert problems(validator, text) == []
    assert problems(validator, dump_resolved(parse_recipe(text, "x"))) == []


def test_there_are_recipes_of_the_plugins() -> None:
    assert len(SHIPPED) > 15
    assert any("sslkit_moco" in str(path) for path in SHIPPED.values())


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("train:\n", "trian:\n", "", "'trian' was unexpected"),
        ("train:\n", "trian:\n", "", "'train' is a required property"),
        ("temperature: 0.5", "temperatur: 0.5", "method.loss", "'temperatur' was unexpected"),
        ("nt_xent", "nt_xentt", "method.loss.name", "'nt_xentt' is not valid under any of"),
        ("nt_xent", "sslkit:nt_xentt", "method.loss.name", "'sslkit:nt_xentt' is not valid under"),
        ("nt_xent", "mlp", "method.loss.name", "'mlp' is not valid under any"),
        ("k: 20", "l2: [1.0]", "evaluate.0", "'l2' was unexpected"),
        ("k: 20", "k: 0", "evaluate.0.k", "0 is less than or equal to the minimum of 0"),
        ("lr: 3e-4", "lr: '3e-4'", "optimizer.lr", "'3e-4' is not of type 'number'"),
        ("temperature: 0.5", "temperature: [0.5]", "method.loss.temperature", "is not valid under"),
        ("temperature: 0.5", "temperature: {name: cosine, start: 0.5}", "method.loss.temperature",
         "is not valid under"),
        ("size: 32", "size: 32, crop_scale: [0.0, 1.0]", "augmentation.crop_scale.0", "0.0 is"),
        ("size: 32", "size: 32, crop_scale: [0.1, 1.1]", "augmentation.crop_scale.1", "1.1 is"),
        ("size: 32", "size: 32, crop_scale: [0.1]", "augmentation.crop_scale", "too short"),
        ("epochs: 2", "epochs: 2\n  compile: maybe", "train.compile",
         "'maybe' is not one of [True, False, 'if_available']"),
        ("epochs: 2", "epochs: 2\n  max_steps: many", "train.max_steps",
         "'many' is not of type 'integer', 'null'"),
        ("{name: mlp, out_dim: 64}", "{out_dim: 64}", "method.head", "'name' is a required prop"),
        ("{name: mlp, out_dim: 64}", "mlp", "method.head", "'mlp' is not of type 'object'"),
        ("  - {name: knn, k: 20}", "  name: knn", "evaluate", "is not of type 'array'"),
        ("seed: 0", "seed: -1", "seed", "-1 is less than the minimum of 0"),
        ("name: tiny", "name: ../tiny", "name", "does not match"),
    ],
)  # fmt: skip
def test_an_editor_marks_a_mistake_where_it_is(
    old: str, new: str, path: str, message: str, validator: Draft202012Validator
) -> None:
    assert GOOD.count(old) == 1
    found = problems(validator, GOOD.replace(old, new))
    assert len(found) == (2 if "trian" in new else 1), found
    assert any(where == path and message in said for where, said in found), found


def test_an_editor_accepts_every_form_of_a_value(validator: Draft202012Validator) -> None:
    changed = {
        "temperature: 0.5": "temperature: {name: cosine, start: 0.5, end: 0.1, warmup_epochs: 1}",
        "name: nt_xent": "name: sslkit:nt_xent",
        "epochs: 2": "epochs: 2\n  compile: if_available\n  max_steps: null\n  online_probe: null",
        "size: 32": "size: 32, crop_scale: [0.08, 1]",
    }
    text = GOOD
    for old, new in changed.items():
        text = text.replace(old, new)
    parse_recipe(text, "x")
    assert problems(validator, text) == []


def fields(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(definition, field, its schema) of every block; the name of a component is none."""
    blocks = {"recipe": schema, **schema["$defs"]}
    return [
        (where, name, field)
        for where, block in blocks.items()
        for name, field in block.get("properties", {}).items()
        if name != "name"
    ]


def test_every_field_says_what_it_is_what_it_takes_and_its_default(schema: dict[str, Any]) -> None:
    assert len(fields(schema)) > 200
    for where, name, field in fields(schema):
        if where.startswith("scheduled number") and name in ("start", "end"):
            continue
        about, _, takes = field["description"].partition("\n\n")
        assert len(about) > 5, (where, name)
        assert re.search(r"; (required|default: \S)", takes), (where, name, takes)
        assert "title" not in field, (where, name)


def test_what_an_editor_shows_of_a_field() -> None:
    definitions = json_schema(load_plugins().registry)["$defs"]
    shown = {
        "recipe/TrainConfig": ("loader_threads", "whole number from 0 to 1024; default: 4"),
        "augmentation.sslkit:simclr": ("blur_sigma", "[number > 0, number > 0]; default: [0.1, 2]"),
        "loss.sslkit:nt_xent": ("temperature", "number > 0 or schedule block; default: 0.5"),
        "method.sslkit:simclr": ("head", "head block; default: {name: mlp}"),
        "optimizer.sslkit:sgd": ("lr", "number > 0; required"),
    }  # fmt: skip
    for where, (name, takes) in shown.items():
        assert definitions[where]["properties"][name]["description"].endswith(f"\n\n{takes}")
    block = definitions["scheduled number"]
    validator = Draft202012Validator({**block, "$defs": definitions})
    assert validator.is_valid(block["examples"][0])
