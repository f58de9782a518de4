"""Which split a name speaks of, as in `train-00000-of-00003.parquet` or the folder `val`."""

from __future__ import annotations

import re

_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
}
_PARTS = re.compile(r"[^a-z]+")


def split_of(name: str) -> str | None:
    """ "train", "test" or "validation"; None for a name that speaks of no split, or of several.

    name: of a file without its ending, or of a folder."""
    found = {_WORDS[part] for part in _PARTS.split(name.lower()) if part in _WORDS}
    return found.pop() if len(found) == 1 else None


def folder_split(name: str) -> str | None:
    """The same for a folder, whose whole name must be the word: `train`, `Val`, and not
    `train-cars`, which may well be a class."""
    return _WORDS.get(name.lower())
