"""Runs of two processes that are killed at random moments end as the one that nobody killed. With
40 kills, or any number: `python -m tests.soak rank-kills --kills 40 --seed 12`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.ranks import random_kills
from tests.ranks.random_kills import (
    choose,
    kill_chains,
    message_faults,
    processes,
    stage_of,
)  # fmt: skip

RUN = "runs/a-20261129-000000-abcd"
WENT_ON = "; stopped at step 5 of 24 (saved in step-00000004.pt); go on with: sslkit run"
KILLED = "error: rank 1 was ended by SIGKILL"


@pytest.mark.slow  # seven minutes: thirteen commands of three interpreters each
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [12])
def test_chains_that_are_killed_end_as_the_undisturbed_run(seed: int, tmp_path: Path) -> None:
    chains = kill_chains(seed, kills=8, scratch=tmp_path)
    assert [fault for chain in chains for fault in chain.faults] == []
    assert sum(len(chain.kills) for chain in chains) >= 8


# --- The harness sees what it should see ----------------------------------------------------------


@pytest.mark.parametrize(
    ("whom", "said"),
    [
        ("rank 1", [KILLED + WENT_ON]),
        ("rank 1", ["data: synthetic", "training: step 4 of 24", "  knn/top1 3.1%", KILLED]),
        ("parent", ["stopped by SIGTERM at step 6 of 24 (saved in step-00000006.pt)"]),
        ("parent", ["error: stopped by SIGTERM before the first step; nothing was kept"]),
    ],
)
def test_one_message_with_the_cause_is_right(whom: str, said: list[str]) -> None:
    assert message_faults(whom, said, over=False) == []


@pytest.mark.parametrize(
    ("whom", "said"),
    [
        ("rank 1", []),
        ("rank 1", [KILLED + WENT_ON, KILLED]),
        ("rank 0", [KILLED + WENT_ON]),
        ("rank 1", ["Traceback (most recent call last):", KILLED]),
        ("rank 1", ["terminate called without an active exception", KILLED]),
        ("rank 1", ["error: another process was lost"]),
        ("parent", [KILLED]),
    ],
)
def test_any_other_message_is_a_fault(whom: str, said: list[str]) -> None:
    assert message_faults(whom, said, over=False) == [f"said {said}"]


def test_a_run_that_was_over_may_be_silent() -> None:
    assert message_faults("rank 1", [], over=True) == []


def test_orphans_are_seen(tmp_path: Path) -> None:
    """Also those whose parent is gone, and not those that are over."""
    variables = {**os.environ, random_kills._MARK: str(tmp_path)}
    subprocess.run(["sh", "-c", "sleep 60 &"], env=variables, check=True)
    over = subprocess.Popen(["true"], env=variables)
    until = time.monotonic() + 20
    while len(found := processes(tmp_path)) != 1:
        assert time.monotonic() < until
    over.wait()
    os.kill(found[0], signal.SIGKILL)
    while processes(tmp_path):
        assert time.monotonic() < until
    assert processes(tmp_path / "other") == []


def lines(*logged: tuple[int, str]) -> str:
    return "".join(f'{{"step": {step}, "metrics": {{"{name}": 1.0}}}}\n' for step, name in logged)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({".lock": ""}, "start"),
        ({"recipe.resolved.yaml": ""}, "start"),
        ({"metrics.jsonl": lines((4, "train/loss"))}, "start"),
        ({"metrics.jsonl": lines((5, "train/loss"))}, "step 5"),
        ({"metrics.jsonl": lines((6, "train/loss"))}, "evaluation"),
        ({"metrics.jsonl": lines((6, "train/loss"), (6, "eval/knn/top1"))}, "step 6"),
        (
            {"metrics.jsonl": lines((8, "a")), "checkpoints/.step-00000008.pt.x.tmp": ""},
            "checkpoint",
        ),
        ({"checkpoints/.step-00000004.pt.x.tmp": ""}, "start"),  # of the kill before
        ({"metrics.jsonl": lines((8, "a")), ".tracker.json.x.tmp": ""}, "file"),
        ({"results.json": ""}, "end"),
    ],
)
def test_what_a_kill_met_is_told(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / RUN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if ".lock" not in files:
        (tmp_path / RUN / "recipe.resolved.yaml").touch()
    assert stage_of(tmp_path, begun=4) == expected


def test_kills_are_spread() -> None:
    generator = random.Random(0)
    plans = [choose(generator) for _ in range(400)]
    whom, when = (Counter(each) for each in zip(*((p.whom, p.when) for p in plans), strict=True))
    assert set(whom) == {"rank 0", "rank 1", "parent"}
    assert set(when) == {"any time", "training", "checkpoint", "evaluation"}
    assert min([*whom.values(), *when.values()]) > 40
