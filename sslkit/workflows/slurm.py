"""`sslkit slurm`: the batch file with which SLURM runs a recipe, and goes on with it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslkit.errors import RecipeError
from sslkit.experiment.check import check_without_data
from sslkit.parallel.division import Division
from sslkit.recipe import Recipe, find_recipe, load_recipe
from sslkit.runs.folder import new_run_id, sanitise_name

_WARNED_S = 120
"""How long before the end of its time a job is told to save. SLURM looks every 30 s."""
_LEAST_MINUTES = 5

_TIME = re.compile(
    r"(?:(?P<days>\d{1,4})-(?P<h>\d{1,4})(?::(?P<m>\d{1,4})(?::\d{1,4})?)?"
    r"|(?P<hours>\d{1,5}):(?P<min>\d{1,5}):\d{1,4}|(?P<minutes>\d{1,7})(?::\d{1,4})?)",
    re.ASCII,
)
"""SLURM's forms of a time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*", re.ASCII)
_OURS = {
    "nodes": "--nodes",
    "ntasks-per-node": "--tasks-per-node",
    "tasks-per-node": "--tasks-per-node",
    "cpus-per-task": "--cpus-per-task",
    "time": "--time",
    "partition": "--partition",
}
"""Directives that have an option of their own."""
_FIXED = ("ntasks", "requeue", "no-requeue", "open-mode", "signal", "chdir", "array", "wrap")
"""Directives on which the rest of the file depends."""

_TEMPLATE = """\
#!/bin/bash
{directives}

# One run: queued again, or submitted again before its end, this file goes on where it was saved.
# Before the time is over, and before another job takes the place of this one, SLURM sends SIGUSR1
# here, which is passed on to the tasks: they save and leave. Then the job is queued again. It is
# not where the run has failed.

srun {step} \\
    {command} &
tasks=$!

told=
trap 'told=yes; kill -USR1 "$tasks"' USR1
while kill -0 "$tasks" 2>/dev/null; do wait "$tasks"; done  # SIGUSR1 ends `wait`, not the tasks
wait "$tasks"
status=$?

preempted() {{ scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; }}
if [ "$status" -ne 0 ] && {{ [ -n "$told" ] || preempted; }}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


@dataclass(frozen=True)
class Allocation:
    """What a job asks SLURM for."""

    nodes: int = 1
    tasks_per_node: int = 1
    """One for each device of a node."""
    cpus_per_task: int | None = None
    """Processors for each task, which its loader threads share; None: what SLURM gives."""
    time: str | None = None
    """Until the job is queued again, in SLURM's form, such as `24:00:00`; None: the partition's."""
    partition: str | None = None
    more: tuple[str, ...] = ()
    """Further options of sbatch, as `NAME=VALUE` or `NAME`."""


@dataclass(frozen=True)
class BatchFile:
    """What `sslkit slurm` made."""

    text: str
    """The file, for sbatch."""
    runs_dir: Path
    """Where the run folder will be: its only run."""


def write_batch_file(
    recipe: str,
    overrides: Sequence[str],
    allocation: Allocation,
    run_id: str | None = None,
) -> BatchFile:
    """The batch file for a run of a recipe, to be submitted from anywhere: its paths count from
    the present working folder. The data need not be here.

    run_id: tells this run from others of the recipe; by default a new one. Raises RecipeError."""
    loaded = load_recipe(find_recipe(recipe), overrides)
    check_without_data(loaded)
    train, tasks = loaded.train, allocation.nodes * allocation.tasks_per_node
    Division.of(train.batch_size, train.micro_batch_size, size=tasks)
    name = sanitise_name(loaded.name)
    runs_dir = loaded.runs_dir / f"{name}-{run_id or new_run_id()}"
    directives = _directives(loaded, name, allocation)
    step = ["--kill-on-bad-exit=0", "--wait=60"]
    if allocation.cpus_per_task is not None:  # srun does not take it from the job
        step.append(f"--cpus-per-task={allocation.cpus_per_task}")
    text = _TEMPLATE.format(
        directives="\n".join(f"#SBATCH --{each}" for each in directives),
        step=" ".join(step),
        command=" ".join(map(shlex.quote, _command(recipe, overrides, runs_dir))),
    )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"{recipe}: a name that is not UTF-8 cannot stand in the file") from None
    return BatchFile(text, runs_dir)


def keep_batch_file(made: BatchFile, out: Path) -> None:
    """Writes the file. Raises RecipeError where there is one already, or none can be made."""
    try:
        with out.open("x", encoding="utf-8", newline="\n") as file:
            file.write(made.text)
    except FileExistsError:
        raise RecipeError(f"--out {out}: exists already; delete it or give another name") from None
    except OSError as error:
        raise RecipeError(f"--out {out}: cannot be written ({error.strerror})") from error


def _command(recipe: str, overrides: Sequence[str], runs_dir: Path) -> list[str]:
    source = f"./{recipe}" if recipe.startswith("-") else recipe
    command = [sys.executable, "-P", "-m", "sslkit", "run", source]
    for override in overrides:
        command += ["-o", override]
    text = str(runs_dir)  # a value is YAML
    value = text if _PLAIN.fullmatch(text) else json.dumps(text)
    return [*command, "-o", f"runs_dir={value}", "--resume", "auto"]


def _directives(recipe: Recipe, name: str, allocation: Allocation) -> list[str]:
    """The lines for sbatch, without `#SBATCH --`."""
    more = [_further(each) for each in allocation.more]
    asked = {each.partition("=")[0] for each in more}
    lines = [
        f"job-name={name}",
        f"chdir={_quoted(str(Path.cwd()), 'the working folder')}",
        f"nodes={allocation.nodes}",
        f"ntasks-per-node={allocation.tasks_per_node}",
    ]
    if allocation.cpus_per_task is not None:
        lines.append(f"cpus-per-task={allocation.cpus_per_task}")
    if recipe.train.device in ("auto", "cuda") and not any(
        each.startswith(("gpus", "gres")) for each in asked
    ):
        lines.append(f"gpus-per-node={allocation.tasks_per_node}")
    if allocation.time is not None:
        lines.append(f"time={_checked_time(allocation.time)}")
    if allocation.partition is not None:
        lines.append(f"partition={_quoted(allocation.partition, '--partition')}")
    lines += more
    return [*lines, "requeue", "open-mode=append", f"signal=B:USR1@{_WARNED_S}"]


def _further(given: str) -> str:
    """An option for sbatch, as a directive."""
    name, equals, value = given.partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise RecipeError(
            f"--sbatch {given!r}: valid is NAME=VALUE or NAME, as sbatch has it without dashes: "
            "account=lab"
        )
    if name in _OURS:
        raise RecipeError(f"--sbatch {given!r}: write {_OURS[name]} of sslkit instead")
    if name in _FIXED:
        raise RecipeError(f"--sbatch {given!r}: the file depends on its own --{name}")
    return f"{name}{equals}{_quoted(value, f'--sbatch {name}')}"


def _quoted(value: str, where: str) -> str:
    """A value as sbatch reads it in a file: between quotes, in which a backslash escapes."""
    if not value.isprintable():
        raise RecipeError(f"{where}: {value!r} has characters that a line for sbatch cannot hold")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def _checked_time(time: str) -> str:
    match = _TIME.fullmatch(time)
    if match is None:
        raise RecipeError(
            f"--time {time!r}: valid is what sbatch takes: minutes, H:M:S, D-H or D-H:M:S"
        )
    days, hours, minutes = (
        sum(int(match[group] or 0) for group in groups)
        for groups in (("days",), ("h", "hours"), ("m", "min", "minutes"))
    )
    if (days * 24 + hours) * 60 + minutes < _LEAST_MINUTES:
        raise RecipeError(
            f"--time {time}: is too short: a job is told to save {_WARNED_S} s before its end; "
            f"valid is {_LEAST_MINUTES} minutes or more"
        )
    return time
