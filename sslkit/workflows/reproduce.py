"""`sslkit reproduce`: a run made once more, and held against itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.engine.display import Display
from sslkit.environment_variables import OMP_NUM_THREADS
from sslkit.errors import RecipeError, SSLKitError
from sslkit.parallel.finding import require_one_process
from sslkit.parallel.local import most_processes, run_processes
from sslkit.recipe import load_recipe
from sslkit.report.terminal import display_path
from sslkit.runs.environment_file import SavedEnvironment, read_environment
from sslkit.runs.evaluations import is_of_weights
from sslkit.runs.folder import (
    RunFolder,
    checkpoint_paths,
    find_runs,
    lock_folder,
    unlock_folder,
)
from sslkit.runs.metrics_file import read_lines
from sslkit.runs.summary import summarise

from .resume import changed_fields
from .run_causes import Change, find_changes
from .run_difference import Findings, compare_runs, saved_step

REPRODUCTIONS = Path("reproductions")
"""Where runs are made once more, in a folder for each first run."""
_MOST_DIFFERENCES = 100


@dataclass(frozen=True)
class Rerun:
    """How a run is made once more."""

    overrides: Sequence[str] = ()
    """They change the seed, or what the hash of a recipe leaves out: paths, the device."""
    until: int | None = None
    """The last step that is compared; None: as far as the run came."""
    out: Path | None = None
    """The folder that the new run folder is made in; None: one for this run, in REPRODUCTIONS."""
    processes: int | None = None
    """How many share the work; None: as many as it began with."""


@dataclass(frozen=True)
class Reproduction:
    """Two runs of one recipe, side by side."""

    first: Path
    second: Path
    until: int
    whole: bool
    """Whether both came to their end, which was compared too."""
    findings: Findings
    changes: tuple[Change, ...]
    """What differs in recipe, data or environment, and may change bits."""
    failure: str | None = None
    """How the second run failed before it came as far as the first."""
    promised: bool = True
    """Whether the device of the run promises equal bits."""

    @property
    def bit_equal(self) -> bool:
        return self.failure is None and not self.findings.differences

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = self.findings
        return {
            "bit_equal": self.bit_equal,
            "run_dir": str(self.first),
            "new_run_dir": str(self.second),
            "until": self.until,
            "whole": self.whole,
            "steps": list(found.steps),
            "numbers": found.numbers,
            "compared": list(found.compared),
            "skipped": list(found.skipped),
            "first_difference": None if found.first is None else found.first.to_json(),
            "equal_until": found.equal_until,
            "differing_steps": found.differing_steps,
            "differences": [each.to_json() for each in found.shown(_MOST_DIFFERENCES)],
            "changes": [each.to_json() for each in self.changes],
            "failure": self.failure,
            "promised": self.promised,
        }


def reproduce(path: Path, rerun: Rerun, display: Display) -> Reproduction:
    """Makes a run once more from its folder, in processes of their own, and compares the two.

    Raises RecipeError and RunFolderError where that cannot be done, SSLKitError where the new run
    is stopped before it has come as far."""
    require_one_process()
    folder, environment = open_trained(path)
    last, is_whole = _reached(folder, environment)
    until = _valid_until(rerun.until, last, path)
    whole = is_whole and until == last
    _require_something(folder, until)
    overrides = _checked_overrides(folder, rerun.overrides)
    fork = find_fork_source(folder, environment)
    request = {
        "recipe": str(folder.recipe),
        "overrides": overrides,
        "fork": None if fork is None else str(fork),
        "until": None if whole else until,
        "home": environment.working_directory,
    }
    count = rerun.processes or environment.processes
    if count > most_processes():
        raise RecipeError(
            f"{path}: was made by {count} processes, more than this machine can run "
            f"({most_processes()}); say how many with --nproc"
        )
    out = (rerun.out or REPRODUCTIONS / folder.path.name).absolute()
    second = _make(request, out, count, environment.threads, display)
    return _compared(folder, second, until, whole)


def hold_against(path: Path, other: Path, until: int | None) -> Reproduction:
    """Compares two runs that are there: what `reproduce` does once it has made the second. Raises
    RecipeError and RunFolderError."""
    (folder, environment), (second, theirs) = open_trained(path), open_trained(other)
    reached, others = _reached(folder, environment), _reached(second, theirs)
    last = min(reached[0], others[0])
    end = _valid_until(until, last, path)
    _require_something(folder, end)
    _require_same_pace(folder, second)
    whole = reached == others == (end, True)
    return _compared(folder, second, end, whole)


# --- What there is --------------------------------------------------------------------------------


def open_trained(path: Path) -> tuple[RunFolder, SavedEnvironment]:
    """A run folder and its environment. Raises RecipeError where nothing was trained."""
    folder = RunFolder.open(path)
    if is_of_weights(folder):
        raise RecipeError(
            f"{path}: weights were measured here, and not trained; measure them again with "
            "sslkit eval"
        )
    return folder, read_environment(folder.path)


def _reached(folder: RunFolder, environment: SavedEnvironment) -> tuple[int, bool]:
    """The last step of a run that can be compared, and whether that is its end."""
    run = summarise(folder.path)
    if run.state == "damaged":
        raise RecipeError(f"{folder.path}: is damaged: {run.why}")
    if run.state == "finished":
        return environment.facts.total_steps, True
    saved = [saved_step(path) for path in run.checkpoints]
    return max([run.step, *saved]), False


def _valid_until(until: int | None, last: int, path: Path) -> int:
    if until is None:
        return last
    if not 1 <= until <= last:
        raise RecipeError(f"--until {until}: {path} has come to step {last}; valid is 1 to {last}")
    return until


def _require_something(folder: RunFolder, until: int) -> None:
    """Raises RecipeError where nothing up to the step could be compared."""
    steps = [line.step for line in read_lines(folder.metrics)
             if any(key.startswith("train/") for key in line.metrics)]  # fmt: skip
    steps += [saved_step(path) for path in checkpoint_paths(folder.checkpoints)]
    if not any(step <= until for step in steps):
        first = f"the first is step {min(steps)}" if steps else "nothing was logged or saved at all"
        raise RecipeError(f"{folder.path}: nothing was logged up to step {until}; {first}")


def _require_same_pace(first: RunFolder, second: RunFolder) -> None:
    """Raises RecipeError where losses are means over other steps."""
    paces = [load_recipe(each.recipe).train.log_every_steps for each in (first, second)]
    if paces[0] != paces[1]:
        raise RecipeError(
            f"{second.path}: was logged every {paces[1]} steps and {first.path} every {paces[0]}: "
            "their losses are means over other steps, and cannot be compared"
        )


def _checked_overrides(folder: RunFolder, overrides: Sequence[str]) -> list[str]:
    saved, wanted = load_recipe(folder.recipe), load_recipe(folder.recipe, overrides)
    changed = list(changed_fields(saved, wanted))
    if saved.train.log_every_steps != wanted.train.log_every_steps:
        changed.append("train.log_every_steps")  # losses would be means over other steps
    if changed:
        names = ", ".join(changed[:3])
        raise RecipeError(
            f"-o {names}: makes another experiment of it, and a reproduction keeps the recipe; "
            f"valid are seed, paths, train.device, train.loader_threads and whatever else its hash "
            f"leaves out. To try a change: sslkit run {folder.recipe} -o ..."
        )
    return list(overrides)


def find_fork_source(folder: RunFolder, environment: SavedEnvironment) -> Path | None:
    """The checkpoint that a forked run began with; None for a run from the first step on. Its own
    first one, which is a copy, is as good. Raises RecipeError where neither is at hand."""
    origin, step = environment.forked_from, environment.forked_at
    if origin is None:
        return None
    home = Path(environment.working_directory or "")
    source = next((each for each in (Path(origin), home / origin) if each.exists()), None)
    if source is not None and source.is_file():
        return source
    places = [folder.path, *([source] if source is not None else [])]
    for place in places:
        for path in checkpoint_paths(RunFolder(place).checkpoints):
            if saved_step(path) == step:
                return path
    at = "a step that is not recorded" if step is None else f"step {step}"
    raise RecipeError(
        f"{folder.path}: was forked from {origin} at {at}, and that checkpoint is not here; put it "
        "back, or reproduce the run that it was forked from"
    )


# --- The new run ----------------------------------------------------------------------------------


def _make(
    request: dict[str, Any], out: Path, count: int, threads: int | None, display: Display
) -> RunFolder:
    """Makes the run in `out` and returns its folder. Raises SSLKitError where there is none."""
    set_here = OMP_NUM_THREADS.text()
    if set_here is None and threads is not None:
        display.message(f"torch threads: {threads}, as it was; OMP_NUM_THREADS would change that")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out {out}: {error.strerror}") from error
    own = [f"runs_dir={json.dumps(str(out))}", "tracking={name: none}"]
    asked = {**request, "overrides": [*request["overrides"], *own]}
    command = [sys.executable, "-P", "-m", "sslkit.workflows.rerun", json.dumps(asked)]
    lock = lock_folder(out)
    try:
        before = {folder.path for folder in find_runs(out)}
        code = run_processes(command, count, threads)
        made = [folder for folder in find_runs(out) if folder.path not in before]
    finally:
        unlock_folder(out, lock)
    if not made:
        kind = RecipeError if code == RecipeError.exit_code else SSLKitError
        raise kind("the run could not be made again, for the reason above")
    return made[-1]


def _compared(first: RunFolder, second: RunFolder, until: int, whole: bool) -> Reproduction:
    run = summarise(second.path)
    came_to = max([run.step, *(saved_step(path) for path in run.checkpoints)])
    failure = None
    if run.state == "finished":  # data of another size make another number of steps
        whole = whole and read_environment(second.path).facts.total_steps == until
    elif came_to < until or whole:
        if run.state != "failed":
            ours, theirs = display_path(first.path), display_path(second.path)
            raise SSLKitError(
                f"the new run was stopped at step {came_to}; go on with: sslkit run --resume "
                f"{theirs}, and then: sslkit reproduce {ours} --with {theirs}"
            )
        failure, whole = f"failed at step {came_to}: {run.why or 'see above'}", False
    findings = compare_runs(first, second, min(until, came_to), whole=whole)
    recipe = load_recipe(first.recipe)
    return Reproduction(
        first=first.path,
        second=second.path,
        until=min(until, came_to),
        whole=whole,
        findings=findings,
        changes=tuple(find_changes(first, second)),
        failure=failure,
        promised=recipe.train.device == "cpu" or recipe.train.deterministic,
    )
