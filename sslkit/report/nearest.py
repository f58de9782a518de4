"""What `sslkit embed --nearest` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .console import print_table


def print_nearest(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table, the row that was asked for first."""
    print_table(
        ("similarity", "index", "label", "image"),
        [
            (
                "asked for" if place == 0 else f"{row['similarity']:.4f}",
                str(row["index"]),
                "" if row["label"] is None else str(row["label"]),
                row["image"],
            )
            for place, row in enumerate(rows)
        ],
    )
