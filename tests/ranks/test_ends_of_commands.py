"""`sslkit run --nproc 2` that is stopped, killed or fails: all its processes end, one says why, and
a resume ends as the run that nobody disturbed, to the bit."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslkit.api import Progress
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.simclr import SimCLR
from sslkit.builtin.sources.synthetic import SyntheticReader
from sslkit.parallel import finding
from sslkit.parallel.world import World
from sslkit.runs.checkpoint import Checkpoints
from sslkit.workflows import train
from tests.ranks.commands import Command
from tests.soak.finished import differences

RECIPE = """\
name: tiny
data: {name: synthetic, num_train: 64, num_test: 32, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
method: {name: simclr, head: {name: mlp, hidden_dim: 16, out_dim: 8}}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train:
  {epochs: 3, batch_size: 16, device: cpu, loader_threads: 0, log_every_steps: 1,
   checkpoint_every_steps: 3, keep_checkpoints: 9}
evaluate: [{name: knn, k: 2, every_epochs: 1}]
tracking: {name: none}
"""
"""12 steps, 3 evaluations, checkpoints at steps 3, 4, 6, 8, 9, 12."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run on two ranks that came to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(RECIPE)
    assert Command(folder, "run", "tiny.yaml", "--nproc", "2").wait() == 0
    return only_run(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a command works."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def two_ranks(
    folder: Path, before: Callable[[], None] = lambda: None, *, timeout_s: int = 30
) -> Command:
    limit = {"SSLKIT_RANK_TIMEOUT": str(timeout_s)}
    words = "run", "tiny.yaml", "--nproc", "2"
    return Command(folder, *words, before=before, environment=limit)


def require_same_end(folder: Path, undisturbed: Path) -> None:
    """Goes on with the run of a folder, which must end as the other one."""
    run = only_run(folder)
    command = Command(folder, "run", "--resume", str(run), "--nproc", "2")
    assert command.wait() == 0, command.said()
    left = sorted((run / "checkpoints").iterdir())
    kept = {path.name for path in (undisturbed / "checkpoints").iterdir()}
    for path in left:  # a stop saves its step too
        if path.name not in kept:
            path.unlink()
    assert differences(run, undisturbed) == []


NEWS = ["data: synthetic, 64 training and 32 test images, in memory", "training: step 0 of 12"]
ALL_SIGNALS = [
    *((signal.SIGTERM, to) for to in ("parent", "0", "1", "all")),
    *((signal.SIGINT, to) for to in ("parent", "all")),  # as a terminal sends it, and a kill
    *((signal.SIGUSR1, to) for to in ("parent", "1")),
]
FEW = [(signal.SIGTERM, "parent")]


@pytest.mark.slow  # 24 seconds
@pytest.mark.parametrize(
    ("number", "to"),
    [
        pytest.param(*each, marks=[] if each in FEW else pytest.mark.slow)  # each is two runs
        for each in ALL_SIGNALS
    ],
)
def test_a_signal_saves_once_and_stops_all(
    folder: Path, undisturbed: Path, number: signal.Signals, to: str
) -> None:
    command = two_ranks(folder)
    command.wait_for_step(5)
    command.send(number, to)
    assert command.wait(limit_s=60) == 1
    run = only_run(folder)
    last = max(path.name for path in (run / "checkpoints").iterdir())
    step = int(last[5:13])
    by = f"{number.name} on rank 1" if to == "1" else number.name
    assert command.said() == [
        *NEWS,
        f"stopped by {by} at step {step} of 12 (saved in {last}); "
        f"go on with: sslkit run --resume {run}",
    ]
    made = sorted(path.name for path in (run / "checkpoints").iterdir())
    extra = {f"step-{n:08d}.pt" for n in range(13)} - {f"step-{n:08d}.pt" for n in (3, 4, 6, 8, 9)}
    assert len(extra & set(made)) <= 1, made
    require_same_end(folder, undisturbed)


@pytest.mark.slow  # 11 seconds
@pytest.mark.parametrize("to", ["0", "1"])
def test_a_signal_cuts_off_what_rank_0_does_alone(folder: Path, to: str) -> None:
    """Also one to a rank that waits for it. The evaluator would take ten minutes."""
    command = two_ranks(folder, slow(KNN, "evaluate", folder / "flag", seconds=600))
    command.wait_for((folder / "flag").exists)
    command.send(signal.SIGTERM, to)
    assert command.wait(limit_s=60) == 1
    (said,) = command.said()[len(NEWS) :]
    where = " on rank 1" if to == "1" else ""
    assert said.startswith(f"stopped by SIGTERM{where} at step 4 of 12 (saved in step-00000004.pt)")


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_before_the_first_step_is_named(folder: Path, rank: int) -> None:
    def patch() -> None:
        read, sent = SyntheticReader.read, list[None]()

        def signal_then_read(self: SyntheticReader, index: int) -> Any:
            if os.environ.get("RANK") == str(rank) and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGUSR1))
            return read(self, index)

        SyntheticReader.read = signal_then_read  # type: ignore[method-assign]

    command = two_ranks(folder, patch)
    assert command.wait(limit_s=60) == 1
    errors = [line for line in command.said() if line.startswith("error: ")]
    ended = "" if rank == 0 else "ended with rank 1: "
    assert errors == [f"error: {ended}stopped by SIGUSR1 before the first step; nothing was kept"]
    assert not list((folder / "runs").iterdir())


# --- Ranks that die, freeze, hang or fail ---------------------------------------------------------


def slow(cls: type, name: str, flag: Path, *, seconds: float = 3) -> Callable[[], None]:
    """Has a method take some seconds, and says when it has begun."""

    def patch() -> None:
        inner = getattr(cls, name)

        def slowed(self: Any, *args: Any, **more: Any) -> Any:
            flag.touch()
            time.sleep(seconds)
            return inner(self, *args, **more)

        setattr(cls, name, slowed)

    return patch


@pytest.mark.slow  # 16 seconds
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("where", ["training", "saving", "evaluation"])
def test_a_rank_that_is_killed_ends_all_and_nothing_is_lost(
    folder: Path, undisturbed: Path, where: str, rank: str
) -> None:
    flag = folder / "flag"
    slowed = {"saving": (Checkpoints, "save"), "evaluation": (KNN, "evaluate")}
    command = two_ranks(folder, slow(*slowed[where], flag) if where in slowed else lambda: None)
    command.wait_for(flag.exists if where in slowed else lambda: command.step() >= 5)
    others = command.ranks()
    command.send(signal.SIGKILL, rank)
    assert command.wait(limit_s=60) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)
    run = only_run(folder)
    (said,) = command.said()[len(NEWS) :]
    assert re.fullmatch(
        rf"error: rank {rank} was ended by SIGKILL; stopped at step \d+ of 12 \(.*\); "
        rf"go on with: sslkit run --resume {run}",
        said,
    )
    require_same_end(folder, undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_before_they_meet_ends_all(folder: Path, rank: int) -> None:
    """While it imports, say: the others need not wait for it."""

    def patch() -> None:
        def find_or_die() -> World:
            if os.environ.get("RANK") == str(rank):
                os.kill(os.getpid(), signal.SIGKILL)
            return finding.find_world()

        train.find_world = find_or_die  # type: ignore[attr-defined]

    words = "run", "tiny.yaml", "--nproc", "3", "-o", "train.batch_size=48"
    command = Command(folder, *words, before=patch, environment={"SSLKIT_RANK_TIMEOUT": "600"})
    assert command.wait(limit_s=60) == 1
    assert command.said() == [f"error: rank {rank} was ended by SIGKILL"]


@pytest.mark.slow  # 18 seconds
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_freezes_ends_all(folder: Path, rank: str) -> None:
    command = two_ranks(folder, timeout_s=6)
    command.wait_for_step(2)
    command.send(signal.SIGSTOP, rank)
    assert command.wait(limit_s=60) == 1
    (said,) = command.said()[len(NEWS) :]
    assert re.match(
        rf"error: rank {rank} (gave no sign of life for|did not come within) \d+ s; stopped at",
        said,
    )


@pytest.mark.slow  # two runs
def test_the_ranks_end_with_their_parent(folder: Path, undisturbed: Path) -> None:
    command = two_ranks(folder)
    command.wait_for_step(5)
    ranks = command.ranks()
    command.send(signal.SIGKILL, "parent")
    command.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert command.said()[-1].startswith("stopped by ")
    require_same_end(folder, undisturbed)


def fail_on(rank: int, error: BaseException) -> Callable[[], None]:
    """Has a plugin, say, raise in the fifth step of one rank."""

    def patch() -> None:
        def before_step(self: SimCLR, progress: Progress) -> None:
            if progress.step == 4 and os.environ.get("RANK") == str(rank):
                raise error

        SimCLR.before_step = before_step  # type: ignore[method-assign]

    return patch


@pytest.mark.slow  # 6 seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_rank_raises_is_said_once(folder: Path, rank: int) -> None:
    command = two_ranks(folder, fail_on(rank, ValueError("the third head is odd")))
    assert command.wait(limit_s=60) == 1
    (said,) = command.said()[len(NEWS) :]
    assert said.startswith("error: ")
    assert "the third head is odd" in said


@pytest.mark.slow  # 5 seconds
def test_a_full_disk_is_said_once(folder: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def patch() -> None:
        def write(self: Checkpoints, *args: Any) -> Path:
            raise full

        Checkpoints.save = write  # type: ignore[method-assign, assignment]

    command = two_ranks(folder, patch)
    assert command.wait(limit_s=60) == 1
    (said,) = command.said()[len(NEWS) :]
    assert said == "error: [Errno 28] No space left on device"


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "train.batch_size=15"], "train.batch_size: 15 images cannot be shared equally"),
        (["-o", "train.epoch=3"], "-o train.epoch=3: unknown field"),
        (["--resume", "x", "--fork", "y"], "--resume and --fork exclude each other"),
    ],
)
def test_wrong_input_is_said_once(folder: Path, words: list[str], said: str) -> None:
    command = Command(folder, "run", "tiny.yaml", "--nproc", "2", *words)
    assert command.wait(limit_s=60) == 2
    errors = [line for line in command.said() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"error: {said}")
