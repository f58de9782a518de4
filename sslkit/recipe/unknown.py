"""What to say of a field that a block does not have: where the setting is, or that it is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from sslkit.host.registry import did_you_mean

from .fields import Place
from .foreign import ABSENT, RENAMED
from .yaml_positions import Path

_SHOWN = 3
"""So many places are named."""
_SEARCHED = 300
"""So many blocks of a recipe are searched; no recipe has as many."""


class UnknownFields:
    """Explains the unknown fields of a recipe, whose fields are gathered when there is one."""

    def __init__(self, root: Place) -> None:
        self._root = root

    @cached_property
    def _known(self) -> Mapping[str, Sequence[Path]]:
        """Field -> its paths in the recipe, named components included."""
        known: dict[str, list[Path]] = defaultdict(list)
        for path, place in islice(self._root.walk(), _SEARCHED):
            for key in place.keys() or ():
                known[key].append((*path, key))
        known.pop("name", None)  # every component has one
        return known

    def explain(self, path: Path) -> str:
        """One line, without the path: the same for a file and for an override."""
        field, around = str(path[-1]), path[:-1]
        block = block_at(self._root, around)
        inside, everywhere = self._find(around, field), self._find((), field)
        if inside and (block.is_component or len(inside) == len(everywhere)):
            return f"unknown field here, it belongs at {_listed(inside)}"
        if (name := _plain(field)) in ABSENT:
            return f"unknown field; {ABSENT[name]}"
        if name in RENAMED:
            return f"unknown field; {self._renamed(RENAMED[name], around, block)}"
        keys = block.keys() or ()
        guess = did_you_mean(field, keys)
        if everywhere and not guess:
            return f"unknown field here; this recipe has it at {_listed(everywhere)}"
        nowhere = "" if guess else "; nothing in this recipe has it."
        return f"unknown field{guess}{nowhere} Valid: {', '.join(keys)}"

    def _renamed(self, target: str, around: Path, block: Place) -> str:
        """Where the field is that a foreign name stands for: in the same block, below it, or where
        it usually is."""
        top, _, field = target.rpartition(".")
        if field in (block.keys() or ()):
            return f"in sslkit it is {_listed([(*around, field)])}"
        inside = self._find(around, field) if around else []
        usual = self._find((top,), field) if top else [(field,)]
        found = [*inside, *usual] if block.is_component else [*usual, *inside]
        if found:
            return f"in sslkit it is {_listed(found)}"
        return f"in sslkit it is '{field}', which the {top} of this recipe does not have"

    def _find(self, around: Path, field: str) -> list[Path]:
        """The paths of fields with this name in a block and below it."""
        return [path for path in self._known.get(field, ()) if path[: len(around)] == around]


def other_names(field: str, keys: Sequence[str]) -> list[str]:
    """The fields of a block that an unknown one probably stands for."""
    guess = did_you_mean(field, keys)
    meant = RENAMED.get(_plain(field), "").rpartition(".")[2]
    return [key for key in keys if f"'{key}'" in guess or key == meant]


def block_at(root: Place, path: Path) -> Place:
    """The place that a path leads to."""
    place = root
    for part in path:
        place = place.child(part) or Place(Any, None, root.registry)
    return place


def _plain(field: str) -> str:
    return field.lower().replace("-", "_")


def _listed(paths: Sequence[Path]) -> str:
    """`optimizer.lr or train.online_probe.lr`; the first ones."""
    return " or ".join(dict.fromkeys(".".join(map(str, path)) for path in paths[:_SHOWN]))
