"""What a person asks `sslkit compare` for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslkit.report.comparison.side_by_side import Match

from .devices import Device


@dataclass(frozen=True)
class ComparisonRequest:
    """Which experiments are held side by side, and where those that are missing are run."""

    inputs: Sequence[str]
    """Folders of finished runs, recipe files and names of shipped recipes."""
    overrides: Sequence[str] = ()
    vary: Sequence[str] = ()
    """`PATH=VALUE,VALUE`: each recipe is run in every combination."""
    seeds: int = 1
    """Runs of each variation; seeds count up from the recipe's."""
    match: Match = "epochs"
    """The budget that all share."""
    out: Path | None = None
    """Folder of the comparison; None: one whose name follows from what is compared."""
    devices: Sequence[Device] = ()
    """Where runs go on side by side; none: one after the other, on the device of each recipe."""
