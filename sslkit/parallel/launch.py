"""How the processes of a run were started, read from the environment: by torchrun or by SLURM's
srun. Nothing is started, no name is looked up and no other program is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sslkit import environment_variables as variables
from sslkit.environment_variables import Variable
from sslkit.errors import RecipeError

_FIRST_PORT, _PORTS = 10_000, 20_000
"""Ports for SLURM's steps: below those that systems hand out by themselves (from 32,768)."""
_SPECIAL_STEP = 0xFFFFFFF0
"""From here SLURM numbers steps that no srun started for their tasks: batch script, shell."""


@dataclass(frozen=True)
class Launch:
    """One of `size` processes that one launcher started."""

    launcher: str
    """Who started it: `torchrun` or `SLURM`."""
    rank: int
    """Which one it is, 0 to size - 1."""
    size: int
    """How many there are, on all machines together."""
    local_rank: int
    """Which one on its machine, 0 to local_size - 1: the number of its device."""
    local_size: int
    """How many there are on its machine."""
    master_address: str
    """Where rank 0 is reached; empty where it is the only one."""
    master_port: int
    """The port there; 0 where it is the only one."""
    run_id: str
    """The same in all of them and after each restart, and in no others that run beside them as far
    as the launcher knows; empty where there is no such name."""
    restarts: int
    """How often they have been started anew, by torchrun and by SLURM together; 0 at first. Not the
    same in all of them: where a machine has come back, its torchrun counts from 0."""

    @property
    def name(self) -> str | None:
        """What tells this launch, restarts included, from others; None where nothing does."""
        unnamed = self.run_id in ("", "none")  # torchrun's without --rdzv-id
        return None if unnamed else f"{self.launcher} {self.run_id}"


def read_launch(
    environ: Mapping[str, str] | None = None, *, starts_others: bool = False
) -> Launch | None:
    """How this process was started; None where it was started alone. `environ` stands for the
    environment of the process. starts_others: it is to start several itself, which needs no srun
    where a job has one machine.

    torchrun counts before SLURM, which may have started it. Raises RecipeError, one line, where
    the variables contradict each other, or name several processes but not which this one is: each
    of them would do the whole work."""
    values = _Values(environ)
    if None not in (values.number(variables.RANK), values.number(variables.WORLD_SIZE)):
        return _checked(_read_torchrun(values), variables.RANK, variables.LOCAL_RANK)
    in_step = _in_step(values)
    _refuse_mpirun(values, in_step)
    if in_step:
        launch = _checked(_read_slurm(values), variables.SLURM_PROCID, variables.SLURM_LOCALID)
        _refuse_other_numbers(values, launch)
        return launch
    _refuse_half(values)
    _refuse_allocation_without_srun(values, starts_others)
    return None


@dataclass(frozen=True)
class _Values:
    """The variables of one environment."""

    environ: Mapping[str, str] | None

    def text(self, variable: Variable) -> str:
        return variable.text(self.environ) or ""

    def number(self, variable: Variable) -> int | None:
        return variable.number(self.environ)

    def needed(self, variable: Variable, launcher: str) -> int:
        number = self.number(variable)
        if number is None:
            raise _missing(variable, launcher)
        return number


def _missing(variable: Variable, launcher: str) -> RecipeError:
    return RecipeError(
        f"{variable.name}: not set, and the other variables of {launcher} are; start with "
        f"{launcher}, which sets all, or set {variable.name}"
    )


def _read_torchrun(values: _Values) -> Launch:
    size = values.needed(variables.WORLD_SIZE, "torchrun")
    alone = size == 1
    address, port = "", 0
    if not alone:
        address = values.text(variables.MASTER_ADDR)
        if not address:
            raise _missing(variables.MASTER_ADDR, "torchrun")
        port = values.needed(variables.MASTER_PORT, "torchrun")
    local_rank, local_size = variables.LOCAL_RANK, variables.LOCAL_WORLD_SIZE
    return Launch(
        launcher="torchrun",
        rank=values.needed(variables.RANK, "torchrun"),
        size=size,
        local_rank=0 if alone else values.needed(local_rank, "torchrun"),
        local_size=1 if alone else values.needed(local_size, "torchrun"),
        master_address=address,
        master_port=port,
        run_id=values.text(variables.TORCHELASTIC_RUN_ID),
        restarts=(values.number(variables.TORCHELASTIC_RESTART_COUNT) or 0)
        + (values.number(variables.SLURM_RESTART_COUNT) or 0),
    )


def _in_step(values: _Values) -> bool:
    """Whether srun started this process as one of its tasks: batch scripts and the shell of salloc
    have the variables of the job alone, or a step of a special number."""
    step = values.number(variables.SLURM_STEP_ID)
    return step is not None and step < _SPECIAL_STEP


def _read_slurm(values: _Values) -> Launch:
    size = values.needed(variables.SLURM_STEP_NUM_TASKS, "srun")
    local_size = _tasks_of_node(values)
    job, step = (
        values.needed(variable, "srun")
        for variable in (variables.SLURM_JOB_ID, variables.SLURM_STEP_ID)
    )
    address, port = "", 0
    if size > 1:
        address = values.text(variables.MASTER_ADDR)
        if not address:
            address = "127.0.0.1" if local_size == size else _first_machine(values)
        port = values.number(variables.MASTER_PORT) or _FIRST_PORT + (7 * job + step) % _PORTS
    return Launch(
        launcher="SLURM",
        rank=values.needed(variables.SLURM_PROCID, "srun"),
        size=size,
        local_rank=values.needed(variables.SLURM_LOCALID, "srun"),
        local_size=local_size,
        master_address=address,
        master_port=port,
        run_id=f"{job}.{step}",
        restarts=values.number(variables.SLURM_RESTART_COUNT) or 0,
    )


def _tasks_of_node(values: _Values) -> int:
    """How many tasks the step has on this machine: `2(x3),1` is 2 on each of three, then 1."""
    variable = variables.SLURM_STEP_TASKS_PER_NODE
    text = values.text(variable)
    node = values.needed(variables.SLURM_NODEID, "srun")
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if match is None:
            break
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    raise RecipeError(
        f"{variable.name}: '{text[:80]}' says no number of tasks for machine "
        f"{values.number(variables.SLURM_NODEID)} (SLURM_NODEID); valid is what srun sets, like "
        "'2(x3),1'; start with srun"
    )


def _first_machine(values: _Values) -> str:
    """The machine of rank 0: the first of the step, in every order of tasks but an arbitrary one,
    whose order the list of machines does not tell."""
    if values.text(variables.SLURM_DISTRIBUTION).startswith("arbitrary"):
        raise RecipeError(
            "SLURM_DISTRIBUTION=arbitrary: which machine has rank 0 cannot be told; set "
            "MASTER_ADDR to its name"
        )
    return first_host(values.text(variables.SLURM_STEP_NODELIST))


def first_host(nodes: str) -> str:
    """The first name in SLURM's short form of a list: `node[01-03,7],x1` begins with `node01`."""
    match = re.match(r"(?:[^][,]|\[[0-9]+[-,0-9]*\])+", nodes)
    if match is None or not re.match(r",|$", nodes[match.end() :]):
        raise RecipeError(
            f"{variables.SLURM_STEP_NODELIST.name}: '{nodes[:80]}' is no list of machines; valid "
            "is what srun sets, like 'node[01-03,7],x1'; start with srun, or set MASTER_ADDR"
        )
    return re.sub(r"\[([0-9]+)[^]]*\]", r"\1", match[0])


def _checked(launch: Launch, rank: Variable, local_rank: Variable) -> Launch:
    """The launch, once its numbers fit each other."""
    for variable, number, size, where in (
        (rank, launch.rank, launch.size, "processes"),
        (local_rank, launch.local_rank, launch.local_size, "processes on this machine"),
    ):
        if number >= size:
            raise RecipeError(
                f"{variable.name}={number}: there are {size} {where}, numbered from 0; "
                f"start with {launch.launcher}, or unset {variable.name} where it is left over"
            )
    if launch.local_size > launch.size:
        raise RecipeError(
            f"{launch.launcher} names {launch.local_size} processes on this machine and "
            f"{launch.size} in all; unset what is left over of another start"
        )
    if launch.master_port > 65_535 or (launch.size > 1 and launch.master_port == 0):
        raise RecipeError(f"{variables.MASTER_PORT.name}={launch.master_port}: valid is 1 to 65535")
    return launch


def _refuse_mpirun(values: _Values, in_step: bool) -> None:
    """mpirun's processes: SLURM's step, where there is one, has started its daemons."""
    counts = [variables.OMPI_COMM_WORLD_SIZE]
    if not in_step:  # where srun itself speaks PMI, its tasks have this too
        counts.append(variables.PMI_SIZE)
    for count in counts:
        if (number := values.number(count) or 0) > 1:
            raise RecipeError(
                f"{count.name}={number}: mpirun has started several processes, which sslkit does "
                f"not read; start with torchrun or srun, or unset {count.name} where it is left "
                "over"
            )


def _refuse_other_numbers(values: _Values, launch: Launch) -> None:
    """A script may set one of torchrun's variables itself: it then says what SLURM says."""
    for variable, number in ((variables.WORLD_SIZE, launch.size), (variables.RANK, launch.rank)):
        given = values.number(variable)
        if given is not None and given != number:
            raise RecipeError(
                f"{variable.name}={given}: SLURM says {number}; unset {variable.name}, which srun "
                "does not need"
            )


def _refuse_half(values: _Values) -> None:
    """One of torchrun's two variables without the other, or srun's without its step."""
    both = (variables.RANK, variables.WORLD_SIZE)
    for given, missing in (both, both[::-1]):
        if (number := values.number(given)) is not None:
            raise RecipeError(
                f"{given.name}={number}: {missing.name} is not set, and torchrun sets both; start "
                f"with torchrun, or unset {given.name} where it is left over"
            )
    for given, alone in ((variables.SLURM_STEP_NUM_TASKS, 1), (variables.SLURM_PROCID, 0)):
        if (number := values.number(given) or 0) > alone:
            raise RecipeError(
                f"{given.name}={number}: SLURM_STEP_ID is not set, and srun sets both; start with "
                f"srun, or unset {given.name} where it is left over"
            )


def _refuse_allocation_without_srun(values: _Values, starts_others: bool) -> None:
    """Several tasks or machines, of which this process would use one."""
    if starts_others and values.number(variables.SLURM_JOB_NUM_NODES) == 1:
        return
    for variable, what in (
        (variables.SLURM_NTASKS, "tasks"),
        (variables.SLURM_JOB_NUM_NODES, "machines"),
    ):
        if (number := values.number(variable) or 0) > 1:
            raise RecipeError(
                f"{variable.name}={number}: SLURM has set {number} {what} apart, and srun has not "
                "started this process; write srun before the command, or srun --nodes=1 "
                "--ntasks=1 for one process"
            )
