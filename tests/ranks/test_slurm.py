"""What SLURM's processes are to sslkit, with SLURM itself."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sslkit.parallel.launch import Launch
from tests.conftest import REPOSITORY
from tests.ranks.slurm import Slurm

READ = """
import dataclasses, json, sys
from sslkit.errors import RecipeError
from sslkit.parallel.launch import read_launch
try:
    launch = read_launch()
    said = launch and dataclasses.asdict(launch)
except RecipeError as error:
    said = str(error)
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(said) + "\\n")
"""
"""Appends what one process reads."""


@pytest.fixture
def read(tmp_path: Path) -> str:
    """A program that appends to `tmp_path / "read"`, as words for a shell."""
    (tmp_path / "read.py").write_text(READ)
    return f"{sys.executable} {tmp_path}/read.py {tmp_path}/read"


def found(folder: Path) -> list[Any]:
    lines = (folder / "read").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda each: str(each and each["rank"]))


def submit(slurm: Slurm, folder: Path, *options: str, body: str) -> int:
    """A job that runs `body` in bash."""
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\nexport PYTHONPATH={REPOSITORY}\n{body}\n")
    return slurm.submit(*options, f"--output={folder}/out", str(script))


def done(slurm: Slurm, job: int) -> dict[str, str]:
    ended = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert ended["JobState"] == "COMPLETED", ended
    return ended


def test_tasks_of_srun_on_two_machines(slurm: Slurm, read: str, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--nodes=2", "--ntasks=3", body=f"srun {read}")
    done(slurm, job)
    common = {"launcher": "SLURM", "size": 3, "run_id": f"{job}.0", "restarts": 0}
    common |= {"master_address": "n0", "master_port": 10_000 + 7 * job}
    places = [
        {"rank": 0, "local_rank": 0, "local_size": 2},
        {"rank": 1, "local_rank": 1, "local_size": 2},
        {"rank": 2, "local_rank": 0, "local_size": 1},
    ]
    assert found(tmp_path) == [asdict(Launch(**common, **place)) for place in places]


def test_tasks_in_an_arbitrary_order_need_an_address(
    slurm: Slurm, read: str, tmp_path: Path
) -> None:
    body = f"srun --distribution=arbitrary --nodelist=n1,n0 {read}"
    done(slurm, submit(slurm, tmp_path, "--nodes=2", "--ntasks=2", body=body))
    lines = (tmp_path / "read").read_text().splitlines()
    assert len(lines) == 2
    assert all("SLURM_DISTRIBUTION=arbitrary: " in line for line in lines)


def test_a_batch_script_without_srun_is_no_task(slurm: Slurm, read: str, tmp_path: Path) -> None:
    done(slurm, submit(slurm, tmp_path, "--ntasks=2", body=read))
    (said,) = (tmp_path / "read").read_text().splitlines()
    assert said.startswith('"SLURM_NTASKS=2: SLURM has set 2 tasks apart')


@pytest.mark.parametrize("options", [["--ntasks=1"], ["--nodes=1"], []])
def test_a_job_of_one_task_is_alone(
    slurm: Slurm, read: str, tmp_path: Path, options: list[str]
) -> None:
    done(slurm, submit(slurm, tmp_path, *options, body=read))
    assert found(tmp_path) == [None]


def test_one_task_of_srun_in_a_larger_job(slurm: Slurm, read: str, tmp_path: Path) -> None:
    done(slurm, submit(slurm, tmp_path, "--ntasks=2", body=f"srun --ntasks=1 {read}"))
    (task,) = found(tmp_path)
    assert (task["rank"], task["size"], task["master_address"]) == (0, 1, "")


def test_the_shell_of_salloc_is_no_task(slurm: Slurm, read: str, tmp_path: Path) -> None:
    shell = {"PYTHONPATH": str(REPOSITORY)}
    slurm.run("salloc", "--ntasks=1", *read.split(), env=shell)
    assert found(tmp_path) == [None]
    slurm.run("salloc", "--ntasks=2", *read.split(), env=shell)
    assert '"SLURM_NTASKS=2: ' in (tmp_path / "read").read_text()
    # A cluster may start it by srun as a step of the job (`LaunchParameters`).
    step = ["srun", "--interactive", "--preserve-env", *read.split()]
    slurm.run("salloc", "--ntasks=1", *step, env=shell)
    assert (tmp_path / "read").read_text().splitlines()[2:] == ["null"]


@pytest.mark.slow  # SLURM lets a job that was queued again wait for some seconds
def test_a_requeue_is_counted_and_keeps_the_name(slurm: Slurm, read: str, tmp_path: Path) -> None:
    again = 'scontrol requeue "$SLURM_JOB_ID"; sleep 60'
    body = f'srun {read}\n[ "$SLURM_RESTART_COUNT" ] || {{ {again}; }}'
    job = submit(slurm, tmp_path, "--ntasks=1", "--requeue", body=body)
    assert slurm.wait(job, "COMPLETED")["Restarts"] == "1"
    read_ = found(tmp_path)
    assert [(each["run_id"], each["restarts"]) for each in read_] == [
        (f"{job}.0", 0),
        (f"{job}.0", 1),
    ]
