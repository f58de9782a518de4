"""What starting costs: CPU time and imported modules of a check, and of a run up to its first step.

    python -m tests.benchmarks.startup

A test holds the modules (`tests/cli/test_cli.py`); times depend on the machine, so only this prints
them. A dry run takes one step, on data that are generated in a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from statistics import median

_COMMANDS = {
    "check a recipe": ["validate", "quickstart"],
    "run to the first step": [
        "run", "quickstart", "--dry-run", "-o", "train.batch_size=16", "-o", "train.device=cpu",
        "-o", "tracking={name: none}", "-o", "backbone.model=test_resnet",
    ],
}  # fmt: skip
_REPETITIONS = 3
_PROGRAM = """
import json, sys, time
from sslkit.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("\\n@" + json.dumps([time.process_time(), [name.partition(".")[0] for name in sys.modules]]))
"""


def measure(words: list[str]) -> tuple[float, Counter[str]]:
    """CPU seconds of a command in a process of its own, and top-level package -> its modules."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(done.stdout.rpartition("\n@")[2])
    return seconds, Counter(modules)


def main() -> None:
    for name, words in _COMMANDS.items():
        found = [measure(words) for _ in range(_REPETITIONS)]
        seconds, modules = [each[0] for each in found], found[0][1]
        largest = ", ".join(f"{package} {number}" for package, number in modules.most_common(6))
        print(
            f"{name}: {median(seconds):.2f} s of CPU ({min(seconds):.2f} to {max(seconds):.2f}, "
            f"n = {len(seconds)}), {modules.total():,} modules ({largest})"
        )


if __name__ == "__main__":
    main()
