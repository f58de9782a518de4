"""How processes were started, read from the environment that torchrun and SLURM make.

SLURM's are those that version 22.05 gave to tasks of `srun`, to batch scripts and to shells."""

from __future__ import annotations

import pytest

from sslkit.errors import RecipeError
from sslkit.parallel.launch import Launch, first_host, read_launch

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "night",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}
JOB = {
    "SLURM_JOB_ID": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
"""What a batch script has."""
STEP = JOB | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_DISTRIBUTION": "block",
}
"""What a task of its srun has."""
SHELL = JOB | {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "node01",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
"""What the shell of salloc has, where it is a step of the job (`use_interactive_step`)."""
ONE_TASK = {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_TASKS_PER_NODE": "1"}


def test_torchrun() -> None:
    assert read_launch(TORCHRUN) == Launch(
        launcher="torchrun",
        rank=5,
        size=8,
        local_rank=1,
        local_size=4,
        master_address="node01",
        master_port=29500,
        run_id="night",
        restarts=2,
    )


def test_a_step_of_slurm() -> None:
    assert read_launch(STEP) == Launch(
        launcher="SLURM",
        rank=5,
        size=8,
        local_rank=1,
        local_size=4,
        master_address="node01",
        master_port=10017,  # 10,000 + 7 * job 2 + step 3
        run_id="2.3",
        restarts=0,
    )


def read(environ: dict[str, str]) -> Launch:
    launch = read_launch(environ)
    assert launch is not None
    return launch


def test_torchrun_counts_before_the_step_that_started_it() -> None:
    assert read(STEP | TORCHRUN).launcher == "torchrun"
    assert read(STEP | TORCHRUN | {"SLURM_RESTART_COUNT": "3"}).restarts == 5


def test_one_process_of_torchrun_needs_no_address() -> None:
    launch = read({"RANK": "0", "WORLD_SIZE": "1"})
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (0, 1, 0, 1)
    assert (launch.master_address, launch.master_port) == ("", 0)


def test_a_requeue_keeps_the_name_of_the_run() -> None:
    launch = read(STEP | {"SLURM_RESTART_COUNT": "1"})
    assert (launch.run_id, launch.restarts) == ("2.3", 1)


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"),
    [("2(x3),1", 0, 2), ("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("1,3", 1, 3), ("4", 0, 4)],
)
def test_tasks_of_this_machine(tasks: str, node: int, local_size: int) -> None:
    numbers = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
    assert read(STEP | numbers | {"SLURM_LOCALID": "0"}).local_size == local_size


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[01-03,7],x1", "node01"),
        ("x1,node[01-03,7]", "x1"),
        ("n[7,1-3]", "n7"),
        ("rack[1-2]-n[003-4].site,y", "rack1-n003.site"),
        ("gpu-a-[0-1]", "gpu-a-0"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
    assert read(STEP | {"SLURM_STEP_NODELIST": nodes}).master_address == first


@pytest.mark.parametrize("nodes", ["", ",", "n[1-", "n]1[", "n[x]", "n[]", "n[1][2"])
def test_what_is_no_list_of_machines_is_said(nodes: str) -> None:
    with pytest.raises(RecipeError, match=r"^SLURM_STEP_NODELIST: '.*' is no list of machines"):
        first_host(nodes)


def test_a_step_on_one_machine_needs_no_name_of_it() -> None:
    one = {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0"}
    assert read(STEP | one | {"SLURM_STEP_NODELIST": ""}).master_address == "127.0.0.1"


def test_master_may_be_set_under_slurm() -> None:
    launch = read(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (launch.master_address, launch.master_port) == ("10.0.0.1", 4000)
    arbitrary = STEP | {"SLURM_DISTRIBUTION": "arbitrary"}
    assert read(arbitrary | {"MASTER_ADDR": "node02"}).master_address == "node02"


def test_ports_of_steps_differ_and_are_not_those_of_the_system() -> None:
    ports = {
        read(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).master_port
        for job in range(123_450, 123_550)
        for step in range(7)
    }
    assert len(ports) == 700
    assert min(ports) >= 10_000
    assert max(ports) < 30_000


def test_what_a_script_sets_for_torch_may_stand_beside_srun() -> None:
    assert read(STEP | {"WORLD_SIZE": "8"}).launcher == "SLURM"
    assert read(STEP | {"RANK": "5"}).rank == 5


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "", "RANK": "", "SLURM_NTASKS": "", "SLURM_STEP_ID": ""},
        {"MASTER_ADDR": "node01", "MASTER_PORT": "29500", "LOCAL_RANK": "0"},
        ONE_TASK | {"SLURM_JOB_ID": "2"},
        ONE_TASK | {"SLURM_JOB_ID": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SHELL | ONE_TASK,
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
    ],
    ids=["none", "empty", "left over", "salloc", "sbatch", "step shell", "mpirun of one"],
)
def test_alone(environ: dict[str, str]) -> None:
    assert read_launch(environ) is None


def test_srun_of_one_task_in_a_larger_job_is_one() -> None:
    numbers = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    launch = read(STEP | numbers | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"})
    assert (launch.size, launch.master_address, launch.master_port) == (1, "", 0)


def without(environ: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key != name}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: RANK is not set, .*torchrun.*unset WORLD_SIZE"),
        ({"RANK": "0"}, "RANK=0: WORLD_SIZE is not set, .*torchrun.*unset RANK"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK: not set, .*torchrun"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "LOCAL_WORLD_SIZE: not set, .*torchrun"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR: not set, .*torchrun"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT: not set, .*torchrun"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8: there are 8 processes, numbered from 0"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "RANK=5: there are 0 processes"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4: there are 4 processes on this machine"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "torchrun names 9 processes on this .* 8 in all"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: valid is 1 to 65535"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0: valid is 1 to 65535"),
        (TORCHRUN | {"RANK": "one"}, "RANK: 'one' is no whole number"),
        (TORCHRUN | {"RANK": "9" * 5000}, "RANK: '9{40}' is no whole number"),
        (JOB, "SLURM_NTASKS=8: .*srun has not started this process; write srun"),
        (SHELL, "SLURM_NTASKS=8: .*srun has not started this process; write srun"),
        (JOB | {"SLURM_NTASKS": ""}, "SLURM_JOB_NUM_NODES=2: .*write srun"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, "SLURM_PROCID=3: SLURM_STEP_ID is not set"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2: SLURM_STEP_ID is not set"),
        (without(STEP, "SLURM_PROCID"), "SLURM_PROCID: not set, .*srun"),
        (without(STEP, "SLURM_LOCALID"), "SLURM_LOCALID: not set, .*srun"),
        (without(STEP, "SLURM_JOB_ID"), "SLURM_JOB_ID: not set, .*srun"),
        (STEP | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8: there are 8 processes"),
        (STEP | {"SLURM_LOCALID": "4"}, "SLURM_LOCALID=4: there are 4 .*on this machine"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4"}, "SLURM_STEP_TASKS_PER_NODE: '4' says no"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": ""}, "SLURM_STEP_TASKS_PER_NODE: '' says no"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(2)"}, r"SLURM_STEP_TASKS_PER_NODE: '4\(2\)' says"),
        (STEP | {"SLURM_STEP_NODELIST": "n["}, "SLURM_STEP_NODELIST: 'n\\[' is no list"),
        (STEP | {"SLURM_DISTRIBUTION": "arbitrary"}, "SLURM_DISTRIBUTION=arbitrary: .*MASTER_ADDR"),
        (STEP | {"WORLD_SIZE": "4"}, "WORLD_SIZE=4: SLURM says 8; unset WORLD_SIZE"),
        (STEP | {"RANK": "0"}, "RANK=0: SLURM says 5; unset RANK"),
        (STEP | {"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE=8: mpirun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: mpirun.*torchrun or srun"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2: mpirun.*torchrun or srun"),
    ],
)
def test_half_a_start_is_refused_in_one_line(environ: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}") as found:
        read_launch(environ)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 250


def test_the_shell_of_one_machine_starts_its_processes_itself() -> None:
    shell = SHELL | {"SLURM_JOB_NUM_NODES": "1"}
    assert read_launch(shell, starts_others=True) is None
    with pytest.raises(RecipeError, match="SLURM_NTASKS=8"):
        read_launch(shell)
    with pytest.raises(RecipeError, match="SLURM_NTASKS=8"):  # of its other machine it has nothing
        read_launch(SHELL, starts_others=True)
    with pytest.raises(RecipeError, match="mpirun"):
        read_launch(shell | {"OMPI_COMM_WORLD_SIZE": "2"}, starts_others=True)


def test_pmi_of_srun_itself_is_no_mpirun() -> None:
    assert read(STEP | {"PMI_SIZE": "8", "PMI_RANK": "5"}).launcher == "SLURM"


def test_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert read_launch() == read_launch(TORCHRUN)
