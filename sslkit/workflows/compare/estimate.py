"""What a comparison would take, from a few measured steps of each arm; nothing is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.engine.display import Display, EachOnce
from sslkit.workflows.plan import make_plan

from .compare import planned_and_given
from .comparison_folder import ComparisonFolder, default_path
from .request import ComparisonRequest


@dataclass(frozen=True)
class ComparisonEstimate:
    """What a comparison would take. Seconds are of training and features, MB of disk."""

    folder: Path
    finished_runs: int
    """Runs that were given."""
    arms: list[dict[str, Any]]
    """Each arm: its seeds and those that are missing; steps, seconds and MB of a run."""
    runs: int
    """Runs that are missing; what follows is their total."""
    steps: int
    seconds: float
    """Where several devices work side by side, that of equal shares."""
    disk_mb: float

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "folder": str(self.folder)}


def estimate(request: ComparisonRequest, *, display: Display) -> ComparisonEstimate:
    """The runs that `compare` would make for the same request: of each arm the seeds that are
    missing, steps, seconds (of training and features) and MB of disk a run, and both in total.
    Where several devices work side by side, the total is that of equal shares.

    Raises what `compare` raises before it runs anything."""
    planned, given, folders = planned_and_given(request)
    place = request.out or default_path(planned, folders)
    there = {(key, record.seed) for key, group in given.items() for record in group}
    there |= ComparisonFolder(place).finished().keys()
    arms, once = [], EachOnce(display)
    for arm in planned:
        missing = [seed for seed in arm.seeds if (arm.identity, seed) not in there]
        plan = make_plan(arm.source, arm.overrides, once, measure=True)
        assert plan.time is not None
        arms.append(
            {
                "arm": arm.label,
                "seeds": list(arm.seeds),
                "missing_seeds": missing,
                "steps": plan.total_steps,
                "seconds": plan.time["total_seconds"],
                "disk_mb": plan.disk["checkpoints_mb"],
                "warnings": [f"{each['path']}: {each['message']}" for each in plan.warnings],
            }
        )
    runs = [(arm, len(arm["missing_seeds"])) for arm in arms]
    return ComparisonEstimate(
        folder=place,
        finished_runs=sum(map(len, given.values())),
        arms=arms,
        runs=sum(number for _, number in runs),
        steps=sum(arm["steps"] * number for arm, number in runs),
        seconds=sum(arm["seconds"] * number for arm, number in runs) / max(1, len(request.devices)),
        disk_mb=sum(arm["disk_mb"] * number for arm, number in runs),
    )
