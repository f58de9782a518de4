"""`sslkit run --resume RUN --dry-run`: the steps of a run again, from its last checkpoint to the
step that was not finite, every number watched; nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslkit.engine.display import Display
from sslkit.engine.failure import refuse_odd_state
from sslkit.engine.loop import checked_step
from sslkit.engine.training import Training
from sslkit.errors import CheckpointError
from sslkit.experiment.build import build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import restore
from sslkit.parallel.world import OneProcess
from sslkit.recipe import load_recipe
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.checkpoint import load as load_checkpoint
from sslkit.runs.endings import FailedStep, read_failure
from sslkit.runs.folder import RunFolder
from sslkit.runs.state import step_of

from .resume import refuse_changes, refuse_other_data


@dataclass(frozen=True)
class Replay:
    """Steps that were repeated; all of them were finite."""

    run_dir: str
    from_step: int
    """The steps that the checkpoint had done; 0: from the start."""
    to_step: int
    recorded: str | None
    """What had not been finite; None where the run has no record of such a step."""
    last_loss: float

    def to_json(self) -> dict[str, Any]:
        """As one JSON document."""
        return asdict(self)

    def __str__(self) -> str:
        steps = f"steps {self.from_step + 1} to {self.to_step} of {self.run_dir}"
        if self.recorded is None:
            return f"{steps} repeated: finite, loss {self.last_loss:.6g}; nothing was kept"
        return (
            f"{steps} repeated: finite, loss {self.last_loss:.6g}, where the run had: "
            f"{self.recorded}; what differs is the machine, its libraries or the data"
        )


def replay(path: Path, overrides: Sequence[str], display: Display) -> Replay:
    """Repeats the steps of a run up to the one that was not finite, or one step from its newest
    checkpoint where there was none. On a CPU they have the bits that they had.

    Raises TrainingError with the module that gives the first number which is not finite, and what
    a resume raises."""
    folder = RunFolder.open(path)
    saved = load_recipe(folder.recipe)
    wanted = resolve(load_recipe(folder.recipe, overrides))
    refuse_changes(saved, wanted, path)
    facts = check(wanted)
    record = read_failure(folder)
    state = _state_before(folder, record)
    with (
        tempfile.TemporaryDirectory() as place,
        RunFolder.create(Path(place), wanted.name) as scratch,
    ):
        experiment = build(wanted, facts, scratch, display, OneProcess())
        refuse_other_data(experiment, folder)
        if state is not None:
            restore(experiment, state, str(path))
        training = experiment.training
        training.output.checkpoints = Checkpoints(
            folder.checkpoints, keep=1
        )  # for messages; none is made
        start = training.progress.step
        end = record.step if record else min(start + 1, facts.total_steps)
        display.message(f"repeating steps {start + 1} to {end}")
        loss = repeat_steps(training, end)
        return Replay(str(path), start, end, record.first if record else None, loss)


def repeat_steps(training: Training, end: int) -> float:
    """Trains up to step `end` and looks at all numbers of each step; the last loss."""
    t = training
    t.method.train()
    t.reads_each_step = t.is_replay = True
    refuse_odd_state(t)
    loss = float("nan")
    while t.progress.step < end:
        epoch, start = divmod(t.progress.step, t.progress.steps_per_epoch)
        for batch in t.loader.epoch(epoch, start):
            t.optimization.set_rules(t.progress)
            output, _ = checked_step(t, batch)
            t.progress = t.progress.next()
            refuse_odd_state(t)
            loss = output.loss.item()
            if t.progress.step == end:
                break
    return loss


def _state_before(folder: RunFolder, record: FailedStep | None) -> dict[str, Any] | None:
    """The newest good checkpoint, of those before the step on record; None: from the start."""
    checkpoints = Checkpoints(folder.checkpoints, keep=1)
    if record is None:
        return checkpoints.load_newest()[0]
    for path in reversed(checkpoints.paths()):
        try:
            state = load_checkpoint(path)
        except CheckpointError:
            continue
        if step_of(state, str(path)) < record.step:
            return state
    return None
