"""What a benchmark leaves behind: JSON with every raw timing, from which all else follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .pairing import Interval, paired_ratios, ratio_interval

FORMAT = "sslkit-benchmarks/1"


@dataclass
class ArmResult:
    """What was measured of one arm."""

    name: str
    work: float
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Of each round, in order: one block of `work`."""
    setup_s: float | None = None
    """Building it."""
    first_block_s: float | None = None
    """The first block: compilation and other costs that are paid once are in here."""
    extra_memory_mb: float | None = None
    """Peak memory above what was in use before, 10^6 bytes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was found on the way, such as graph breaks or synchronisations."""
    unavailable: str | None = None
    """The reason, where the arm could not run."""


@dataclass
class Group:
    """Arms that did the same work on the same input."""

    part: str
    title: str
    arms: list[ArmResult]
    reference: str | None = None
    """The arm that ratios are given against."""
    ceiling: str | None = None
    """The arm that nothing with the same encoder can be faster than."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What holds for all arms: sizes, data, batch."""
    note: str = ""

    def arm(self, name: str) -> ArmResult | None:
        """The arm of this name, where it was measured."""
        return next((arm for arm in self.arms if arm.name == name and arm.seconds), None)

    def ratio(self, name: str, to: str) -> Interval | None:
        """Speed of an arm as a multiple of another's: median over rounds; None where one is
        missing."""
        mine, other = self.arm(name), self.arm(to)
        if mine is None or other is None:
            return None
        return ratio_interval(paired_ratios(mine.seconds, mine.work, other.seconds, other.work))


def write_results(path: Path, document: dict[str, Any], groups: Sequence[Group]) -> None:
    """Writes a file that `read_results` reads. Ratios are written too, for readers without us."""
    described = [asdict(group) | {"ratios": _ratios(group)} for group in groups]
    text = json.dumps({"format": FORMAT, **document, "groups": described}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read_results(path: Path) -> tuple[dict[str, Any], list[Group]]:
    """(everything but the groups, the groups) of a file. Raises ValueError for another format."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path}: is no result of these benchmarks (expected {FORMAT})")
    groups = []
    for entry in document.pop("groups"):
        del entry["ratios"]
        arms = [ArmResult(**arm) for arm in entry.pop("arms")]
        groups.append(Group(**entry, arms=arms))
    return document, groups


def _ratios(group: Group) -> list[dict[str, Any]]:
    found = []
    for to in (group.reference, group.ceiling):
        for arm in group.arms:
            ratio = group.ratio(arm.name, to) if to is not None and to != arm.name else None
            if ratio is not None:
                found.append({"arm": arm.name, "to": to, **asdict(ratio)})
    return found
