"""Paths in recipes: what they stand for, and what to say when they do not exist."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from sslkit.errors import RecipeError


def missing(field: str, path: Path, wanted: str) -> RecipeError:
    """The error for a path that does not exist, with the nearest name in the nearest folder.

    field: where the path stands, such as `data.train`; wanted: what it should be.
    """
    if os.path.lexists(path) and path.is_symlink():
        return RecipeError(f"{field}: {path} is a link that leads nowhere; expected {wanted}")
    parent, name = path.parent, path.name
    while not parent.exists() and parent != parent.parent:
        parent, name = parent.parent, parent.name
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean {parent / close[0]}?" if close else f"{parent.resolve()} has no {name}"
    return RecipeError(f"{field}: {path} does not exist; expected {wanted}; {advice}")


def sample_positions(count: int, salt: str, most: int) -> list[int]:
    """At most `most` positions below `count`, ascending, the same for the same count and salt;
    the first and the last are always among them."""
    if count <= most:
        return list(range(count))
    digests = (hashlib.blake2b(f"{salt}\0{i}".encode(), digest_size=8) for i in range(most - 2))
    return sorted({0, count - 1, *(int(digest.hexdigest(), 16) % count for digest in digests)})


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The size that all have, else None."""
    return sizes[0] if sizes and all(size == sizes[0] for size in sizes) else None
