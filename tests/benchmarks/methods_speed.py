"""How long a step of one recipe takes in units of another's: CPU time, in turns, in one process.

    python -m tests.benchmarks.methods_speed --arm RECIPE OVERRIDE... --reference RECIPE OVERRIDE...

CPU time depends on what else the machine does, through caches and cores that share a unit: by up
to 40 % where it was tried. In turns, both recipes meet the same, and their ratio stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from sslkit.experiment.resolve import resolve
from sslkit.recipe import find_recipe, load_recipe

from .ours import TrainRun

_STEPS = 10
_LEAD_STEPS = 5
"""Steps that come before the clock in each block, in which the loader gets ahead."""


def cpu_ratio(arm: Sequence[str], reference: Sequence[str], rounds: int) -> float:
    """CPU seconds of a step of `arm` over those of a step of `reference`, the median of rounds.

    Both are a recipe and its overrides."""
    with ExitStack() as stack:
        runs = []
        for name, *overrides in (arm, reference):
            recipe = resolve(load_recipe(find_recipe(name), overrides))
            run = TrainRun(recipe, _STEPS, _LEAD_STEPS, time.process_time)
            stack.callback(run.close)
            runs.append(run)
        for run in runs:  # the first steps allocate
            run.block()
        seconds = [[run.block() for run in runs] for _ in range(rounds)]
    return statistics.median(ours / others for ours, others in seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the ratio. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods_speed")
    for name in ("--arm", "--reference"):
        parser.add_argument(name, nargs="+", required=True, help="a recipe and its overrides")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    print(json.dumps(cpu_ratio(given.arm, given.reference, given.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
