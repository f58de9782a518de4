"""What `sslkit embed --nearest` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .console import print_table


@dataclass(frozen=True)
class Neighbour:
    """A row of a file of features beside the row that was asked for."""

    index: int
    """The position in the split."""
    label: int | None
    image: str
    """What the source calls it."""
    similarity: float
    """The cosine of the angle between both features."""


def print_nearest(rows: Sequence[Neighbour]) -> None:
    """A table, the row that was asked for first."""
    print_table(
        ("similarity", "index", "label", "image"),
        [
            (
                "asked for" if place == 0 else f"{row.similarity:.4f}",
                str(row.index),
                "" if row.label is None else str(row.label),
                row.image,
            )
            for place, row in enumerate(rows)
        ],
    )
