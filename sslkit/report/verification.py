"""What `sslkit verify` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .console import print_line, print_table
from .terminal import display_path


def print_verification(found: Mapping[str, Any]) -> None:
    """A row per expectation. found: `Verification.to_json`."""
    rows = [
        [row["metric"], _range(row), _measured(row), _verdict(row)] for row in found["expectations"]
    ]
    print_table(["metric", "expected", "measured", "verdict"], rows)
    print_line(f"run folder: {display_path(Path(found['run_dir']))}")


def _range(row: Mapping[str, Any]) -> str:
    words = (("at least", row["at_least"]), ("at most", row["at_most"]))
    return ", ".join(f"{word} {value:g}" for word, value in words if value is not None)


def _measured(row: Mapping[str, Any]) -> str:
    return "not measured" if row["measured"] is None else f"{row['measured']:.6g}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["met"]:
        return "met"
    return "missed" if row["shortfall"] is None else f"missed by {row['shortfall']:.3g}"
