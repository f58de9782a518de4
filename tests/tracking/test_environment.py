"""What is recorded about the machine, and the sampler of system metrics."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch

from sslkit.runs.environment import describe, git_state
from sslkit.tracking.system import SystemSampler


def git(directory: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "sub").mkdir(parents=True)
    git(root, "init", "-q")
    (root / "code.py").write_text("a = 1\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_commit_and_dirty_flag(repository: Path) -> None:
    state = git_state(repository / "sub")
    assert state is not None
    assert state.commit == git(repository, "rev-parse", "HEAD")
    assert Path(state.root).samefile(repository)
    assert not state.dirty
    (repository / "runs.txt").write_text("untracked")
    assert git_state(repository) == state
    (repository / "code.py").write_text("a = 2\n")
    changed = git_state(repository)
    assert changed is not None
    assert changed.dirty


def test_no_hook_and_no_file_monitor_runs(repository: Path) -> None:
    for name in ("post-index-change", "monitor"):
        script = repository / ".git" / "hooks" / name
        script.write_text(f"#!/bin/sh\ntouch '{repository}/{name}.ran'\n")
        script.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(repository / ".git" / "hooks" / "monitor"))
    time.sleep(0.01)
    os.utime(repository / "code.py")  # `git status` would like to refresh the index
    index = (repository / ".git" / "index").read_bytes()
    assert git_state(repository) is not None
    assert not list(repository.glob("*.ran"))
    assert (repository / ".git" / "index").read_bytes() == index
    git(repository, "status")  # the same, unguarded: the trap works
    assert list(repository.glob("*.ran"))


def test_no_repository_no_commit_no_git(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "absent") is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_state(repository) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(repository) is None
    assert describe(cwd=repository)["git"] is None


def test_description_is_json_and_complete(repository: Path) -> None:
    found = describe(
        device="cpu", plugins={"sslkit-byol": "1.2"}, data={"train": "abc"}, cwd=repository
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["plugins"] == {"sslkit-byol": "1.2"}
    assert found["data"] == {"train": "abc"}
    assert found["git"]["dirty"] is False
    assert found["torch"]["num_threads"] == torch.get_num_threads()
    assert 1 <= found["hardware"]["cpu_threads_usable"] <= found["hardware"]["cpu_threads"]
    assert found["hardware"]["cpu"]


def test_sampler_measures_and_stops() -> None:
    samples: list[Mapping[str, float]] = []
    with SystemSampler(samples.append, interval_s=0.1):
        end = time.monotonic() + 10
        while len(samples) < 3:  # busy, so that there is something to measure
            assert time.monotonic() < end
    assert not [t for t in threading.enumerate() if t.name == "sslkit-system"]
    count = len(samples)
    time.sleep(0.2)
    assert len(samples) == count
    assert samples[0]["system/cpu_percent"] > 0
    for sample in samples:
        assert all(key.startswith("system/") for key in sample)
        assert 0 <= sample["system/cpu_percent"] <= 100
        assert 0 < sample["system/process_memory_mb"] * 1e6 < psutil.virtual_memory().total
    assert any(sample["system/process_cpu_percent"] > 0 for sample in samples)


def test_sampler_stops_where_nobody_takes_its_samples(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(metrics: Mapping[str, float]) -> None:
        raise RuntimeError("the run log is finished")

    sampler = SystemSampler(refuse, interval_s=0.01)
    sampler.start()
    end = time.monotonic() + 5
    while "no more of them" not in caplog.text:
        assert time.monotonic() < end
        time.sleep(0.01)
    sampler.stop()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sampler_sees_the_gpu() -> None:
    block = torch.zeros(50_000_000, device="cuda")
    sample = SystemSampler(lambda metrics: None, torch.device("cuda")).sample()
    assert sample["system/gpu_memory_mb"] >= block.nbytes / 1e6
    assert 0 < sample["system/gpu_memory_percent"] <= 100
