"""Recipes: strict, typed, frozen, self-contained.

A recipe is read from YAML with the position of every value, changed by overrides, validated (each
component block by the component's own `Config`), and then hashed, flattened and written out.

Not here: where recipe files lie (`host/recipe_files.py`, which needs no torch), and what is built
from one (`experiment`)."""

from __future__ import annotations

from sslkit.host.recipe_files import find_recipe, shipped_recipes

from .data_block import load_data_block
from .hashing import (
    backbone_name,
    dump_resolved,
    experiment_hash,
    file_digests,
    flatten,
    hashed_view,
    recipe_hash,
)
from .loading import load_recipe, parse_recipe, read_field
from .model import (
    Expectation,
    OnlineProbeConfig,
    Origin,
    Recipe,
    TrainConfig,
    components,
    scheduled_numbers,
)
from .problems import check_recipe
from .schema import json_schema
from .yaml_positions import CommandOverride

__all__ = [
    "CommandOverride",
    "Expectation",
    "OnlineProbeConfig",
    "Origin",
    "Recipe",
    "TrainConfig",
    "backbone_name",
    "check_recipe",
    "components",
    "dump_resolved",
    "experiment_hash",
    "file_digests",
    "find_recipe",
    "flatten",
    "hashed_view",
    "json_schema",
    "load_data_block",
    "load_recipe",
    "parse_recipe",
    "read_field",
    "recipe_hash",
    "scheduled_numbers",
    "shipped_recipes",
]
