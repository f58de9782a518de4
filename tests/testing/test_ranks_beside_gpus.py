"""`ranks-agree` in a process whose forks compute no gradients, as on machines with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslkit.testing.forked import forks_compute_gradients

SCRIPT = """\
import json, sys, torch
torch._C._ensureCUDADeviceGuardSet()  # as torch's compiler does where there is no GPU
torch.ones(1, requires_grad=True).backward()

from broken_methods import Sound
from subtle_methods import FailsOnOneRank
from sslkit.testing import checks
from sslkit.testing.forked import forks_compute_gradients

def local():
    class Local(Sound):
        pass
    return Local

said = {}
for method in (Sound, FailsOnOneRank, local()):
    (check,) = (check for check in checks(method) if str(check) == "ranks-agree")
    outcome = check.outcome()
    said[method.__name__] = [outcome.status, outcome.text]
print("\\n" + json.dumps([forks_compute_gradients(), said]))
"""


@pytest.mark.slow  # 20 seconds
@pytest.mark.skipif(sys.platform != "linux", reason="several processes are tried on Linux alone")
def test_ranks_are_forked_from_another_interpreter() -> None:
    """They were forked from this one, where torch refused: the law said that every method was
    broken."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    can_fork, said = json.loads(done.stdout.splitlines()[-1])
    assert not can_fork  # so that the other interpreter is what is tried
    status, text = said["Sound"]
    assert status == "passed", text
    assert text.startswith("at most ")
    status, text = said["FailsOnOneRank"]
    assert status == "failed"
    assert text.startswith("rank 1: ValueError: no weights here (")
    assert "subtle_methods.py:" in text
    assert said["Local"] == ["untried", "__main__ is no file that another process can import"]


def test_whether_forks_can_is_found_by_trying() -> None:
    torch.ones(1, requires_grad=True).backward()
    assert forks_compute_gradients() is not torch.cuda.is_available()
