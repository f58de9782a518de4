"""`sslkit compare --devices`: runs side by side, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.runs.folder import RunFolder
from sslkit.runs.state import last_metrics
from sslkit.workflows.compare import devices as devices_module
from sslkit.workflows.compare import worker
from sslkit.workflows.compare.devices import parse_devices, shared
from sslkit.workflows.compare.worker import reporting_display
from sslkit.workflows.train import start

NO_PICTURES = ("--map", "none", "--neighbours", "0")
VARY = ("--vary", "method.loss.temperature=0.1,0.5")


@pytest.fixture(autouse=True)
def _one_thread_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def results(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, seed) -> metrics after the last epoch."""
    found = {}
    for path in folder.glob("runs/*/results.json"):
        name, seed = path.parent.name.rsplit("-", 3)[0], 0
        metrics = last_metrics(RunFolder.open(path.parent))
        found[name, seed] = {k: v for k, v in metrics.items() if k.startswith(("eval/", "train/"))}
    return found


@pytest.mark.slow  # interpreters that import torch, for each run
@pytest.mark.timeout(300)  # three processes
def test_runs_side_by_side_are_those_one_after_the_other(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes; one of them fails, and the other has the bits that it has alone."""
    out = tmp_path / "out"
    words = [str(tiny), "--vary", "optimizer.lr=1e30,1e-3", "-o", "train.epochs=1",
             "--devices", "cpu,cpu", *NO_PICTURES, "--out", str(out), "--json"]  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *words])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["status"] == "failed"
    assert [len(arm["runs"]) for arm in document["arms"]] == [0, 1]
    assert "the loss is" in document["arms"][0]["failed"]["0"]
    assert any("at the same time on one device" in note for note in document["notes"])
    lines = printed.err.splitlines()
    second = "[2/2] tiny lr=1e-3, seed 0"
    log = next(line for line in lines if line.startswith(f"{second}: on cpu, output in "))
    assert any(line.startswith(f"{second}: training from step 0 of 6") for line in lines)
    assert any(line.startswith(f"{second}: done in ") for line in lines)
    assert any(line.startswith("[1/2] tiny lr=1e30, seed 0: failed: ") for line in lines)
    assert "training: step 0 of 6" in Path(log.rpartition(" ")[2]).read_text()

    alone = start(
        tiny, ["train.epochs=1", "optimizer.lr=1e-3", "name=tiny-lr-1e-3"], display=Silent()
    )
    kept = {k: v for k, v in alone.metrics.items() if k.startswith(("eval/", "train/"))}
    assert results(out)["tiny-lr-1e-3", 0] == kept


def test_a_run_reports_a_few_words_and_logs_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("sslkit")
    monkeypatch.setattr(logger, "handlers", [])
    display = reporting_display()
    display.start(100, 0)
    for step in (10, 20):  # within ten seconds of what was said last
        display.metrics({"train/loss": 2.5, "perf/images_per_second": 1234.0}, step)
    display.metrics({"eval/knn/top1": 0.5, "collapse/std": 0.1}, 20)
    display.message("data: 5 images")
    logging.getLogger("sslkit.tracking.log").warning("tracking: %s is away", "X")
    printed = capsys.readouterr()
    assert [json.loads(line)["progress"] for line in printed.out.splitlines()] == [
        "training from step 0 of 100", "step 20: eval/knn/top1 0.5",
        "warning: tracking: X is away",
    ]  # fmt: skip
    assert len(printed.err.splitlines()) == 6
    monkeypatch.setattr(worker, "_REPORT_EVERY_S", 0.0)
    display.metrics({"train/loss": 2.5, "perf/images_per_second": 1234.0}, 30)
    said = json.loads(capsys.readouterr().out)["progress"]
    assert said == "step 30 of 100, loss 2.5, 1,234 images/s"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stop_all_and_go_on(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A stop ends every run that is going on, and the same command comes to the same results."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sslkit", "compare", str(tiny), *VARY, *NO_PICTURES,
               "--devices", "cpu,cpu", "--out", str(out), "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 200
        while len({p.parts[-3] for p in out.glob("runs/*/checkpoints/step-*.pt")}) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.communicate()
    before = sorted(out.glob("runs/*"))
    assert len(before) == 2
    wait_until_free(before)
    if number == signal.SIGINT:
        assert process.returncode == 1
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(out.glob("runs/*")) == before  # each went on where it was
    for temperature in ("0.1", "0.5"):
        name = f"tiny-temperature-{temperature}"
        wanted = [f"name={name}", f"method.loss.temperature={temperature}"]
        alone = start(tiny, wanted, display=Silent())
        kept = {k: v for k, v in alone.metrics.items() if k.startswith(("eval/", "train/"))}
        assert results(out)[name, 0] == kept


def wait_until_free(folders: list[Path]) -> None:
    """Waits until the processes of these runs are gone. They hold locks as long as they live."""
    deadline = time.monotonic() + 60
    for path in folders:
        while True:
            try:
                RunFolder.open(path, write=True).close()
                break
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu,cuda:0", "are of several kinds"),
        ("gpu", "'gpu' is no device; valid are cpu, mps, cuda, cuda:0"),
        ("cpu:1", "'cpu:1' is no device"),
        ("cuda:x", "'cuda:x' is no device"),
        ("cuda:7", "cuda:7 is not available here; available: cuda:0, cuda:1"),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RecipeError, match=f"--devices {text}: {expected}"):
        parse_devices(text)


def test_each_process_sees_its_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible("cuda:0,cuda:1") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")  # what the user left of the machine
    assert visible("cuda:0,cuda:1") == ["3", "GPU-5f"]
    assert visible("cuda") == [None]
    assert {device.kind for device in parse_devices("cuda:0,cuda:1")} == {"cuda"}
    assert not shared(parse_devices("cuda:0,cuda:1"))
    assert shared(parse_devices("cuda:0,cuda:0"))
    assert shared(parse_devices("cpu,cpu"))
    assert not shared(parse_devices("cpu"))


def visible(text: str) -> list[Any]:
    return [device.environment.get("CUDA_VISIBLE_DEVICES") for device in parse_devices(text)]


def test_cores_are_divided_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "available_cores", lambda: 8)
    assert [device.environment for device in parse_devices("cpu,cpu")] == [{}, {}]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [device.environment for device in parse_devices("cpu,cpu,cpu")] == [
        {"OMP_NUM_THREADS": "2"}
    ] * 3
    assert parse_devices("cpu")[0].environment == {}
