"""What a method embeds, entry by entry and view by view: whether images are still kept apart.

Shapes: B images, P positions (views, patches) of an entry, D its width, K prototypes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.api import Apart
from sslkit.nn.numerics import normalize
from sslkit.nn.representation import feature_std, prototypes_in_use

_MOST_POSITIONS = 16
"""Entries with more positions, such as those with patches, are reported by the least alone."""
_ODD = re.compile(r"[^\w.\- ]")
"""What trackers do not take in a name."""


@dataclass(frozen=True)
class Branch:
    """One entry of `Method.embed`."""

    name: str
    kind: Apart
    width: int
    spread: Sequence[float]
    """At each position: 0 where all images have the same, about 1 where they are spread out."""
    in_use: Sequence[float] = ()
    """At each position, for prototypes: the part of those that could be in use, 0 to 1."""
    shares: Sequence[float] = ()
    """For prototypes: the part of the images that each has, the mean over the positions."""

    def metrics(self) -> Iterator[tuple[str, float]]:
        """The least of the positions under the name of the entry, and each of them."""
        for prefix, values in (("embedding_spread", self.spread), ("prototypes", self.in_use)):
            if not values:
                continue
            stem = f"collapse/{prefix}/{_ODD.sub('_', self.name)}"
            yield stem, min(values)
            if 1 < len(values) <= _MOST_POSITIONS:
                yield from ((f"{stem}/{place}", value) for place, value in enumerate(values))

    def place(self, position: int) -> str:
        """What to call a position, for people."""
        return f"'{self.name}'" + (f", view {position}" if len(self.spread) > 1 else "")


def read_branches(
    embeddings: Mapping[str, Tensor], must_not_collapse: Mapping[str, Apart] | None = None
) -> tuple[list[Branch], list[Branch]]:
    """All entries that can be judged, and those of them that must not collapse.

    embeddings: (B, ..., D) of floating point; images are compared within each of the positions
    between. Other entries, and those with fewer than two images or dimensions, are left out.
    must_not_collapse: see `Method.must_not_collapse`; None: every entry but "features", and that
    one too where there is no other. Raises ValueError where it names what cannot be judged."""
    usable = {
        name: value.flatten(1, -2) if value.ndim > 2 else value[:, None]
        for name, value in embeddings.items()
        if value.is_floating_point() and value.ndim >= 2 and len(value) >= 2 and value.shape[-1] > 1
    }
    named = must_not_collapse or {}
    if missing := sorted(named.keys() - usable.keys()):
        raise ValueError(
            f"must_not_collapse names '{missing[0]}', and embed gives {', '.join(usable) or 'none'}"
        )
    branches = [_branch(name, value, named.get(name)) for name, value in usable.items()]
    if must_not_collapse is not None:
        return branches, [branch for branch in branches if branch.name in named]
    return branches, [branch for branch in branches if branch.name != "features"] or branches


def _branch(name: str, entry: Tensor, kind: Apart | None) -> Branch:
    """entry: (B, P, D)."""
    kind = kind or ("prototypes" if _are_probabilities(entry) else "spread")
    width, positions = entry.shape[-1], entry.unbind(dim=1)
    if kind == "spread":
        spread = [float(feature_std(rows.double())) * math.sqrt(width) for rows in positions]
        return Branch(name, kind, width, spread)
    assigned = [_assignments(rows.double()) for rows in positions]
    in_use = [float(prototypes_in_use(rows)) for rows in assigned]
    shares = torch.stack(assigned).mean(dim=(0, 1)).tolist()
    return Branch(name, kind, width, [_distance(rows) for rows in assigned], in_use, shares)


def _are_probabilities(entry: Tensor) -> bool:
    sums = entry.sum(dim=-1, dtype=torch.float64)
    return bool((entry >= 0).all()) and bool(((sums - 1.0).abs() < 1e-2).all())


def _assignments(rows: Tensor) -> Tensor:
    """(B, K) probabilities; of other scores the highest is assigned."""
    if _are_probabilities(rows):
        return rows
    return torch.nn.functional.one_hot(rows.argmax(dim=1), rows.shape[1]).to(rows)


def _distance(rows: Tensor) -> float:
    """Root mean square distance of normalised rows from their mean, 0 to 1. Unlike the mean
    deviation of a dimension it does not fall with the number of prototypes that nobody uses."""
    unit = normalize(rows)
    return math.sqrt(max(1.0 - float(unit.mean(dim=0).square().sum()), 0.0))
