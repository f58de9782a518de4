"""The types and defaults of recipe fields in words, for `sslkit plugins show`, the reference pages
and what editors show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_NO_BOUND = 2**60
"""Bounds from here on are those of integers as such."""


def type_words(spec: Mapping[str, Any], quote: str = "") -> str:
    """The type of a JSON Schema property in the words of a recipe. quote: put around literals."""
    if "sslkit_kind" in spec:
        from sslkit.api.schedules import SCHEDULED  # here: `plugins list` imports no torch

        kind = spec["sslkit_kind"]
        return "schedule block" if kind == SCHEDULED else f"{kind} block"
    options = spec.get("anyOf") or spec.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(type_words(option, quote) for option in options))
    if "enum" in spec:
        return " or ".join(f"{quote}{choice}{quote}" for choice in spec["enum"])
    if "const" in spec:
        return quote + json.dumps(spec["const"]).strip('"') + quote
    if "$ref" in spec:
        return "block"
    kind = spec.get("type", "any")
    if kind == "array":
        if "prefixItems" in spec:
            return f"[{', '.join(type_words(item, quote) for item in spec['prefixItems'])}]"
        item = type_words(spec.get("items", {}), quote)
        return f"list of {item}s" if re.fullmatch("[a-z ]+", item) else f"list of {item}"
    if kind == "object":
        inside = spec.get("additionalProperties")
        if isinstance(inside, dict):
            return f"block of name: {type_words(inside, quote)}"
        return "block"
    words = {
        "integer": "whole number",
        "boolean": f"{quote}true{quote} or {quote}false{quote}",
        "string": "path" if spec.get("format") == "path" else "text",
    }
    return f"{words.get(kind, kind)} {bounds(spec)}".strip()


def bounds(spec: Mapping[str, Any]) -> str:
    """`from 0 to 1` and the like, from a JSON Schema property; empty without bounds."""
    if "minimum" in spec and spec.get("maximum", _NO_BOUND) < _NO_BOUND:
        return f"from {spec['minimum']:g} to {spec['maximum']:g}"
    low = next((k for k in ("minimum", "exclusiveMinimum") if k in spec), None)
    high = next((k for k in ("maximum", "exclusiveMaximum") if k in spec), None)
    parts = []
    if low:
        parts.append(f"{'≥' if low == 'minimum' else '>'} {spec[low]:g}")
    if high and spec[high] < _NO_BOUND:
        parts.append(f"{'≤' if high == 'maximum' else '<'} {spec[high]:g}")
    return ", ".join(parts)


def value_words(value: Any) -> str:
    """A default as a recipe would hold it: `true`, `{name: mlp}`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_words(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_words, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
