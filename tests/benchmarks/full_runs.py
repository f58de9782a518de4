"""Whole runs through `sslkit run`: accuracy and wall time, compilation and evaluation included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from sslkit.runs.metrics_file import read_lines

from .ours import scratch
from .results import ArmResult, Group


def run_full(
    recipes: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], device: str
) -> Iterator[Group]:
    """A group for each recipe, with an arm for each seed. Every run is a process of its own, begun
    as a user would; its metrics are those of its last lines."""
    for recipe in recipes:
        arms = [_run(recipe, seed, overrides, device) for seed in seeds]
        facts = {"recipe": recipe, "overrides": list(overrides)}
        yield Group("runs", f"sslkit run {recipe}", arms, facts=facts)


def _run(recipe: str, seed: int, overrides: Sequence[str], device: str) -> ArmResult:
    runs_dir = scratch()
    settled = [
        f"seed={seed}", f"runs_dir={runs_dir}", f"train.device={device}", "tracking={name: none}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "sslkit", "run", recipe]
    for override in [*settled, *overrides]:
        command += ["-o", override]
    result = ArmResult(f"seed {seed}", 1.0, "runs")
    start = time.perf_counter()
    # Its progress goes to our standard error; only its exit code and its folder are read.
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    result.seconds = [time.perf_counter() - start]
    result.facts["exit_code"] = code
    for folder in runs_dir.iterdir():
        last: dict[str, float] = {}
        for line in read_lines(folder / "metrics.jsonl"):
            last |= line.metrics
        result.facts["metrics"] = {k: v for k, v in sorted(last.items()) if "system/" not in k}
    shutil.rmtree(runs_dir, ignore_errors=True)
    if code != 0:
        result.unavailable = f"ended with exit code {code}"
    return result
