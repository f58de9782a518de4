"""What commands print for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from sslkit.errors import printable


def print_json(document: Any) -> None:
    """One JSON document on standard output. JSON has no NaN and no infinity: they become null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def print_path(path: Path) -> None:
    """A path on standard output: to a program the bytes that it has, to a terminal as it can be
    shown."""
    if sys.stdout.isatty():
        print(printable(str(path)))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
