"""`torchrun ... -m tests.ranks.curve_of_rank FOLDER CASE=STEPS...`: one rank's part of curves that
several machines share, left as `FOLDER/<rank>.pt`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslkit.parallel.finding import find_world
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.ranks.curves import begin, cases, curve, make


def curves_of(world: World, folder: Path, steps: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Case -> its curve. steps: case -> how many."""
    with held_by_first(world, lambda: begin(folder)) as run:
        return {
            name: curve(make(run, method, overrides, world), steps[name])
            for name, method, overrides in cases()
            if name in steps
        }


def main(folder: str, *words: str) -> None:
    """The command."""
    torch.set_num_threads(1)
    pairs = (word.split("=") for word in words)
    world = find_world()
    with world.reporting():
        found = curves_of(world, Path(folder), {name: int(steps) for name, steps in pairs})
        torch.save(found, Path(folder) / f"{world.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
