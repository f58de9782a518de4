"""How runs end: by signals at any moment, by a source that hangs, without memory, by a fork that
does not fit. The signals are real: where nobody catches them, they end the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import Evaluation, FeatureInput
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.builtin.losses import NTXent
from sslkit.builtin.sources.synthetic import SyntheticReader
from sslkit.data.cached_split import CachedSplit
from sslkit.engine.display import Display, Silent
from sslkit.engine.memory import is_out_of_memory
from sslkit.engine.signals import StopSignals
from sslkit.errors import CheckpointError, SSLKitError, TrainingError
from sslkit.parallel.world import OneProcess
from sslkit.runs.checkpoint import Checkpoints, load
from sslkit.runs.state import read_state, step_of
from sslkit.threads import ordered_groups
from sslkit.tracking.log import RunLog
from sslkit.workflows.train import start

CALLBACK = "callbacks=[{name: augmented_views}]"
QUIET = [CALLBACK, "evaluate=[]", "train.checkpoint_every_epochs=9"]


class Said(Display):
    """Keeps what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.slow  # 5 seconds
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_saves_and_stops(tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def hook(self: object, run: object, metrics: object, progress: Any) -> None:
        if progress.step == 2:
            signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr(AugmentedViews, "on_step", hook)
    said = Said()
    stopped = start(str(tiny), QUIET, display=said)
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] == 2
    assert said.lines[-1] == (
        f"stopped by {name} at step 2 of 18 (saved in step-00000002.pt); go on with: "
        f"sslkit run --resume {stopped.run_dir}"
    )


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_before_the_first_step_leaves_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def stop(*given: object, **named: object) -> None:
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr("sslkit.experiment.build.check_encoder", stop)
    with pytest.raises(SSLKitError, match=f"^stopped by {name} before the first step; nothing was"):
        start(str(tiny), QUIET, display=Silent())
    assert list((tiny.parent / "runs").iterdir()) == []
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_second_ctrl_c_says_what_is_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(self: object, run: object, batch: object, progress: Any) -> None:
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(AugmentedViews, "on_batch", hook)
    said = Said()
    steps = [*QUIET, "train.checkpoint_every_steps=3"]
    assert start(str(tiny), steps, display=said).status == "stopped"
    assert "at step 4 of 18 (saved in step-00000003.pt, steps from 4 on are" in said.lines[-1]


def test_ctrl_c_while_a_stopped_run_is_closed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the tracker is sent the rest, for example."""
    finish = RunLog.finish

    def hook(self: object, run: object, metrics: object, progress: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def interrupted(self: RunLog, status: Any, *, lost: bool = False) -> bool:
        if self._stopping is None:
            finish(self, status)
            signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(AugmentedViews, "on_step", hook)
    monkeypatch.setattr(RunLog, "finish", interrupted)
    with pytest.raises(SSLKitError) as caught:
        start(str(tiny), QUIET, display=Silent())
    assert "at step 2 of 18 (saved in step-00000002.pt); go on with" in str(caught.value)


def test_ctrl_c_after_a_finished_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = RunLog.finish

    def interrupted(self: RunLog, status: Any, *, lost: bool = False) -> bool:
        if self._stopping is None:
            finish(self, status)
            signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(RunLog, "finish", interrupted)
    said = Said()
    done = start(str(tiny), ["train.max_steps=1", "evaluate=[]"], display=said)
    assert done.status == "finished"
    assert said.lines[-1].startswith(
        f"SIGINT came after the run was finished: all is in {done.run_dir}"
    )


@pytest.mark.slow  # 2 seconds
def test_a_signal_cuts_an_evaluation_off(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before it is saved, and a resume evaluates again."""
    from sslkit.builtin.evaluators.knn import KNN

    evaluate, seen = KNN.evaluate, []

    def interrupted(self: KNN, given: FeatureInput) -> Evaluation:
        seen.append(given.subject)
        if len(seen) == 1:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        return evaluate(self, given)

    monkeypatch.setattr(KNN, "evaluate", interrupted)
    stopped = start(str(tiny), ["train.epochs=2"], display=Silent())
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] == 6
    done = start(None, [], resume=str(stopped.run_dir), display=Silent())
    assert done.status == "finished"
    assert seen.count("trained") == 3  # cut off, after epoch 1, after epoch 2


# --- A source that hangs --------------------------------------------------------------------------


@pytest.mark.slow  # 9 seconds
@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_source_that_hangs_does_not_hold_a_stop(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    released = threading.Event()
    read, pid = SyntheticReader.read, os.getpid()
    steps: list[int] = []

    def on_batch(self: object, run: object, batch: object, progress: Any) -> None:
        steps.append(progress.step)

    def hang(self: SyntheticReader, index: int) -> Any:
        if len(steps) > 1 and not released.is_set():
            threading.Timer(0.2, os.kill, (pid, getattr(signal, name))).start()
            released.wait()
        return read(self, index)

    monkeypatch.setattr(AugmentedViews, "on_batch", on_batch)
    make = SyntheticReader.__init__

    def varied(self: SyntheticReader, *given: Any) -> None:
        make(self, *given)
        self.image_size = None  # read on demand

    monkeypatch.setattr(SyntheticReader, "__init__", varied)
    monkeypatch.setattr(SyntheticReader, "read", hang)
    begun = time.monotonic()
    stopped = start(str(tiny), [*QUIET, "train.loader_threads=1"], display=Silent())
    released.set()
    assert stopped.status == "stopped"
    assert read_state(stopped.run_dir)["step"] >= 1
    assert time.monotonic() - begun < 60  # it hangs for ever otherwise


@pytest.mark.slow  # 2 seconds
def test_a_consumer_that_gives_up() -> None:
    released = threading.Event()
    asked = []

    def work(item: int) -> int:
        if item == 3:
            released.wait()
        return item

    def give_up() -> bool:
        asked.append(True)
        return len(asked) > 2

    groups = ((number, [number]) for number in range(10))
    made = [tag for tag, _ in ordered_groups(work, groups, num_threads=2, give_up=give_up)]
    released.set()
    assert made == [0, 1, 2]


@pytest.mark.slow  # 10 seconds
def test_a_process_ends_beside_a_thread_that_hangs(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(
        "import time\n"
        "from sslkit.threads import ordered_groups\n"
        "made = ordered_groups(lambda i: time.sleep(3600 * i), ((i, [i]) for i in range(9)),"
        " num_threads=1)\n"
        "next(made)\n"
        "made.close()\n"
        "print('closed')\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "closed\n"


def test_an_overdue_stop() -> None:
    with StopSignals() as stop:
        assert not stop.overdue()
        signal.raise_signal(signal.SIGUSR1)
        assert stop.requested == "SIGUSR1"
        assert not stop.overdue()
        stop._requested_at -= 10.0
        assert stop.overdue()
        with pytest.raises(KeyboardInterrupt), stop.stopping_at_once():
            pytest.fail("it went on")


def test_a_signal_while_ranks_agree_counts_the_next_time() -> None:
    """The others were told of none, and go on."""

    class Late(OneProcess):
        def any(self, value: bool) -> bool:
            if not value:
                signal.raise_signal(signal.SIGUSR1)
            return value

    with StopSignals() as stop:
        assert not stop.agree(Late())
        assert stop.requested == "SIGUSR1"
        assert stop.agree(Late())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("own_first", [True, False])
def test_a_signal_to_this_rank_and_to_another_one_at_once(name: str, own_first: bool) -> None:
    """It names its own, also where both came before it could handle the first."""
    with StopSignals() as stop:
        sends: list[Callable[[], None]] = [
            lambda: signal.raise_signal(getattr(signal, name)),
            lambda: hear_on_a_thread(stop, f"{name} on rank 1"),
        ]
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        for send in sends if own_first else sends[::-1]:
            send()
        before = stop.requested
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(signal.Signals))
        assert (before, stop.requested, stop.got) == (None, name, name)


def test_a_signal_to_another_rank() -> None:
    with StopSignals() as stop:
        hear_on_a_thread(stop, "SIGTERM on rank 1")
        assert (stop.requested, stop.got) == ("SIGTERM on rank 1", None)


def hear_on_a_thread(stop: StopSignals, what: str) -> None:
    thread = threading.Thread(target=stop.hear, args=[what])
    thread.start()
    thread.join()


def test_a_signal_that_asks_for_nothing() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGURG)
        assert (stop.requested, stop.got) == (None, None)


# --- Memory ---------------------------------------------------------------------------------------


def too_much(*given: object, **named: object) -> Tensor:
    return torch.empty(1 << 50)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_what_says_that_memory_is_missing(error: Exception) -> None:
    with pytest.raises(RuntimeError) as caught:
        too_much()
    assert is_out_of_memory(caught.value)  # torch's own on a CPU
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    ("micro_batch", "expected"),
    [
        ("null", "lower train.batch_size, now 16, or set train.micro_batch_size below it"),
        ("4", "lower train.micro_batch_size, now 4, or train.batch_size, now 16"),
    ],
)
def test_a_step_without_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: str, expected: str
) -> None:
    monkeypatch.setattr(NTXent, "forward", too_much)
    with pytest.raises(TrainingError, match=f"^step 1: out of memory on cpu; {expected}"):
        start(str(tiny), [f"train.micro_batch_size={micro_batch}"], display=Silent())


def test_data_without_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CachedSplit, "__init__", too_much)
    with pytest.raises(TrainingError, match=r"^out of memory on cpu before the first step"):
        start(str(tiny), [], display=Silent())


def test_an_evaluation_without_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.evaluation.subjects.extract", too_much)
    with pytest.raises(TrainingError, match=r"^evaluation: out of memory on cpu; all is saved"):
        start(str(tiny), ["train.epochs=1"], display=Silent())


# --- Forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("method.head.out_dim=4", r"size mismatch for head\.\S+: copying a param with shape torch"),
        ("backbone.model=resnet10t", r"Unexpected key\(s\) in state_dict: .*; and \d+ more"),
        ("optimizer={name: sgd, lr: 0.1}", "it is the state of another optimiser"),
    ],
)
def test_a_fork_that_does_not_fit_says_why(
    tiny: Path, only_run: Callable[[], Path], change: str, expected: str
) -> None:
    short = ["train.max_steps=1", "evaluate=[]"]
    source = start(str(tiny), short, display=Silent()).run_dir
    with pytest.raises(CheckpointError, match=expected) as caught:
        start(str(tiny), ["evaluate=[]", change], fork=source, display=Silent())
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("start a run with backbone.weights")
    assert len(message) < 1000
    assert only_run() == source  # nothing is left of a run that never began


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("step",), "x"), (("step",), -1), (("step",), None), (("method",), 5), (("meter",), None),
        (("meter", "losses"), 1), (("optimization",), []), (("optimization", "param_groups"), 3),
        (("optimization", "param_groups"), [4]), (("optimization", "state"), 3), (("probe",), 7),
    ],
)  # fmt: skip
def test_a_state_of_anybodys_is_refused_in_one_line(
    tiny: Path, tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    source = start(str(tiny), ["train.max_steps=1", "evaluate=[]"], display=Silent()).run_dir
    state = read_state(source)
    inside: Any = state
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    kept = {key: value for key, value in state.items() if key not in ("format", "step")}
    if place == ("step",):  # written last, so that it counts
        checkpoints = Checkpoints(tmp_path / "other", keep=1)
        path = checkpoints.save(1, kept)
        state = {**load(path), "step": value}
        with pytest.raises(CheckpointError, match=r"its step is .*; valid is a whole number"):
            step_of(state, str(path))
        return
    path = Checkpoints(tmp_path / "other", keep=1).save(1, kept)
    with pytest.raises(CheckpointError, match="its state does not fit this recipe") as caught:
        start(str(tiny), ["evaluate=[]"], fork=path, display=Silent())
    assert "\n" not in str(caught.value)
