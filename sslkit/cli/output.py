"""What commands print for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(document: Any) -> None:
    """One JSON document on standard output. JSON has no NaN and no infinity: they become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
