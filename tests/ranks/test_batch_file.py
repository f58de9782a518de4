"""`sslkit slurm`: the text of the batch file, what bash makes of it, and what SLURM does."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sslkit.cli.app import main
from sslkit.errors import RecipeError
from sslkit.workflows.slurm import Allocation, BatchFile, write_batch_file
from tests.ranks.slurm import Slurm

WHOLE = """\
#!/bin/bash
#SBATCH --job-name=tiny
#SBATCH --chdir={folder}
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=1-12:00:00
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

# One run: queued again, or submitted again before its end, this file goes on where it was saved.
# Before the time is over, and before another job takes the place of this one, SLURM sends SIGUSR1
# here, which is passed on to the tasks: they save and leave. Then the job is queued again. It is
# not where the run has failed.

srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 \\
    {python} -P -m sslkit run tiny.yaml -o train.device=auto -o 'evaluate=[]' \
-o runs_dir={runs}/tiny-night --resume auto &
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


@pytest.fixture
def here(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tiny recipe, where the test works."""
    monkeypatch.chdir(tiny.parent)
    return tiny.parent


def made(*more: str, overrides: tuple[str, ...] = ()) -> BatchFile:
    return write_batch_file("tiny.yaml", overrides, Allocation(more=more), "night")


def test_the_whole_file(here: Path) -> None:
    allocation = Allocation(2, 4, 8, "1-12:00:00", "gpu", ("account=lab", "exclusive"))
    overrides = ["train.device=auto", "evaluate=[]"]
    found = write_batch_file("tiny.yaml", overrides, allocation, "night")
    assert found.text == WHOLE.format(folder=here, runs=here / "runs", python=sys.executable)
    assert found.runs_dir == here / "runs" / "tiny-night"


def directives(found: BatchFile) -> list[str]:
    lines = found.text.splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def test_a_run_on_processors_asks_for_none(here: Path) -> None:
    assert not [line for line in directives(made()) if line.startswith("--gp")]
    assert "--gpus-per-node=1" in directives(made(overrides=("train.device=cuda",)))


@pytest.mark.parametrize("given", ["gres=gpu:a100:1", "gpus=1", "gpus-per-task=1"])
def test_devices_that_are_named_are_not_asked_for_twice(here: Path, given: str) -> None:
    found = directives(made(given, overrides=("train.device=auto",)))
    assert f"--{given}" in found
    assert len([line for line in found if line.startswith(("--gpu", "--gres"))]) == 1


def test_two_files_are_two_runs(here: Path) -> None:
    one, other = (write_batch_file("tiny.yaml", [], Allocation()) for _ in range(2))
    assert one.runs_dir != other.runs_dir


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nodes=2", "--sbatch 'nodes=2': write --nodes of sslkit instead"),
        ("ntasks-per-node=2", ".*: write --tasks-per-node of sslkit instead"),
        ("cpus-per-task=2", ".*: write --cpus-per-task of sslkit instead"),
        ("time=1:00:00", ".*: write --time of sslkit instead"),
        ("partition=gpu", ".*: write --partition of sslkit instead"),
        ("signal=USR2@1", ".*: the file depends on its own --signal"),
        ("array=0-3", ".*: the file depends on its own --array"),
        ("no-requeue", ".*: the file depends on its own --no-requeue"),
        ("ntasks=2", ".*: the file depends on its own --ntasks"),
        ("--account=lab", ".*: valid is NAME=VALUE or NAME, .* without dashes"),
        ("account lab", ".*: valid is NAME=VALUE or NAME"),
        ("a\n#SBATCH --nodes=9", ".*: valid is NAME=VALUE or NAME"),
        ("", ".*: valid is NAME=VALUE or NAME"),
        ("comment=a\nrm -r x", "--sbatch comment: .* a line for sbatch cannot hold"),
        ("comment=\x1b[2J", "--sbatch comment: .* a line for sbatch cannot hold"),
    ],
)
def test_options_that_the_file_cannot_have(here: Path, given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}") as found:
        made(given)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "time", ["5", "300:0", "0:5:00", "5:00", "0-1", "0-0:5", "1-0:0:0", "9999"]
)
def test_times_that_sbatch_takes(here: Path, time: str) -> None:
    found = write_batch_file("tiny.yaml", [], Allocation(time=time))
    assert f"--time={time}" in directives(found)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("4", "is too short: a job is told to save 120 s before its end; .* 5 minutes or more"),
        ("4:59", "is too short"),
        ("0:4:59", "is too short"),
        ("0-0:4", "is too short"),
        ("0", "is too short"),
        ("1h", "valid is what sbatch takes"),
        ("", "valid is what sbatch takes"),
        ("-1", "valid is what sbatch takes"),
        ("\u0665\u0665", "valid is what sbatch takes"),
        ("10\n#SBATCH --nodes=9", "valid is what sbatch takes"),
        ("1:2:3:4", "valid is what sbatch takes"),
    ],
)
def test_times_that_it_does_not_take(here: Path, time: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^--time .*: {message}"):
        write_batch_file("tiny.yaml", [], Allocation(time=time))


def test_a_broken_recipe_is_refused_now_and_not_in_the_queue(here: Path) -> None:
    with pytest.raises(RecipeError, match=r"^-o train\.epoch=5: unknown field"):
        made(overrides=("train.epoch=5",))


def test_a_batch_that_the_tasks_cannot_share_is_refused_now(here: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch_size: 16 .* by 6 processes"):
        write_batch_file("tiny.yaml", [], Allocation(nodes=2, tasks_per_node=3))


def test_a_login_is_not_written(here: Path) -> None:
    uri = "https://me:secret@mlflow.example"
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as found:
        made(overrides=(f"tracking={{name: mlflow, tracking_uri: '{uri}'}}",))
    assert "secret" not in str(found.value)


# --- The command ----------------------------------------------------------------------------------


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["slurm", *words])
    return int(ended.value.code or 0)


def test_the_command_prints_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "2", "--tasks-per-node", "4", "--cpus-per-task", "4", "--time", "2:0:0"]
    assert command("tiny.yaml", *words, "--partition", "p", "--sbatch", "mem=8G") == 0
    printed = capsys.readouterr().out
    run_id = printed.split("/tiny-")[-1].split()[0]
    allocation = Allocation(2, 4, 4, "2:0:0", "p", ("mem=8G",))
    assert printed == write_batch_file("tiny.yaml", [], allocation, run_id).text
    assert sorted(path.name for path in here.iterdir()) == ["tiny.yaml"]


def test_the_command_writes_a_new_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("tiny.yaml", "--out", "job.sh") == 0
    said = capsys.readouterr().out
    assert said.startswith("job.sh: submit it with sbatch; the run will be in ")
    before = (here / "job.sh").read_text()
    assert said.split()[-1] in before
    assert command("tiny.yaml", "--out", "job.sh") == 2
    assert capsys.readouterr().err == (
        "error: --out job.sh: exists already; delete it or give another name\n"
    )
    assert (here / "job.sh").read_text() == before
    assert command("tiny.yaml", "--out", "missing/job.sh") == 2
    assert "--out missing/job.sh: cannot be written" in capsys.readouterr().err


# --- bash -----------------------------------------------------------------------------------------

ODD = 'it\'s "odd" #1 \\ $HOME `x`;& é %j *?[a] {b}<c>|~!\n$(touch stolen)'
"""What a stranger may call a file."""

SRUN = """#!{python}
import json, os, signal, sys, time
json.dump([os.getcwd(), sys.argv[1:]], open(os.environ["SAID"], "w"))
def leave(number, frame):
    sys.exit(int(os.environ["TOLD"]))
signal.signal(signal.SIGUSR1, leave)
open(os.environ["SAID"] + ".ready", "w").close()
if os.environ.get("TOLD"):
    time.sleep(60)
sys.exit(int(os.environ["STATUS"]))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo "   PreemptTime=$PREEMPTED"; else echo "$@" >> "$SAID.scontrol"; fi
"""


@pytest.fixture
def bash(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs a batch file between programs that stand for SLURM's: the exit code, what was asked of
    scontrol, and the words that srun got."""
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    for name, text in {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(
        found: BatchFile, *, status: int = 0, told: int | None = None, preempted: str = "None"
    ) -> tuple[int, str, list[str]]:
        variables = {"SAID": str(said), "STATUS": str(status), "PREEMPTED": preempted}
        variables |= {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        if told is not None:
            variables["TOLD"] = str(told)
        script = tmp_path / "job.sh"
        script.write_text(found.text)
        process = subprocess.Popen(["bash", str(script)], env={**os.environ, **variables})
        if told is not None:
            end = time.monotonic() + 60
            while not Path(f"{said}.ready").exists():
                assert time.monotonic() < end
                time.sleep(0.01)
            process.send_signal(signal.SIGUSR1)
        code = process.wait(timeout=60)
        asked = Path(f"{said}.scontrol")
        words: list[str] = json.loads(said.read_text())[1]
        return code, asked.read_text() if asked.exists() else "", words

    return run


Bash = Callable[..., tuple[int, str, list[str]]]


def test_every_word_comes_through_and_nothing_is_run(
    here: Path, tmp_path: Path, bash: Bash
) -> None:
    odd = here / (ODD.replace("/", "") + ".yaml")
    odd.write_text((here / "tiny.yaml").read_text())
    folder = here / "a '$(touch stolen)' \"b\": # c"
    overrides = [f"runs_dir={json.dumps(str(folder))}", "evaluate=[]"]
    found = write_batch_file(odd.name, overrides, Allocation(), "night")
    code, _, words = bash(found)
    assert code == 0
    runs = f"runs_dir={json.dumps(str(folder / 'tiny-night'))}"
    given = ["-P", "-m", "sslkit", "run", odd.name, "-o", overrides[0], "-o", overrides[1]]
    step = ["--kill-on-bad-exit=0", "--wait=60", sys.executable]
    assert words == [*step, *given, "-o", runs, "--resume", "auto"]
    assert not list(tmp_path.rglob("stolen"))


def test_a_recipe_that_looks_like_an_option(here: Path, bash: Bash) -> None:
    (here / "--json.yaml").write_text((here / "tiny.yaml").read_text())
    _, _, words = bash(write_batch_file("--json.yaml", [], Allocation(), "night"))
    assert words[7] == "./--json.yaml"


@pytest.mark.parametrize(
    ("happened", "code", "asked"),
    [
        ({"status": 0}, 0, ""),
        ({"status": 1}, 1, ""),
        ({"status": 2}, 2, ""),
        ({"told": 1}, 1, "requeue 7\n"),
        ({"told": 0}, 0, ""),
        ({"status": 1, "preempted": "2026-11-29T06:27:58"}, 1, "requeue 7\n"),
        ({"status": 0, "preempted": "2026-11-29T06:27:58"}, 0, ""),
    ],
    ids=["done", "failed", "wrong", "saved", "done when told", "preempted", "done when preempted"],
)
def test_what_is_queued_again(
    here: Path, bash: Bash, happened: dict[str, object], code: int, asked: str
) -> None:
    assert bash(made(), **happened)[:2] == (code, asked)


def test_bash_finds_no_fault(here: Path) -> None:
    check = ["bash", "-n", "-u", "/dev/stdin"]
    done = subprocess.run(check, input=made().text, capture_output=True, text=True, check=True)
    assert done.stderr == ""


# --- SLURM ----------------------------------------------------------------------------------------


def test_sbatch_takes_the_file_in_a_folder_of_any_name(
    slurm: Slurm, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.parent / ODD.partition("\n")[0]
    folder.mkdir()
    tiny.rename(folder / "tiny.yaml")
    monkeypatch.chdir(folder)
    comment = 'a "b" #c \\d $e'
    allocation = Allocation(2, 2, 1, "10", "main", (f"comment={comment}",))
    (folder / "job.sh").write_text(write_batch_file("tiny.yaml", [], allocation).text)
    slurm.run("sbatch", "--test-only", "job.sh", cwd=folder)
    job = slurm.submit("--hold", str(folder / "job.sh"), cwd=Path("/"))
    shown = slurm.run("scontrol", "show", "job", str(job))
    slurm.run("scancel", str(job))
    facts = dict(line.strip().split("=", 1) for line in shown.splitlines() if "=" in line)
    assert facts["WorkDir"] == str(folder)
    assert facts["Comment"].strip() == comment
    assert "TimeLimit=00:10:00" in shown
    assert "NumNodes=2-2 NumCPUs=4 NumTasks=4 CPUs/Task=1" in shown
    assert "Requeue=1" in shown


@pytest.mark.slow  # a run that is interrupted three times, and the seconds that SLURM waits
@pytest.mark.timeout(1200)
def test_a_run_goes_on_through_requeues_warnings_and_preemptions(slurm: Slurm, here: Path) -> None:
    """In one folder and one run of MLflow, without a gap or a double in what both have."""
    store = here / "mlflow.db"
    tracking = f"tracking={{name: mlflow, tracking_uri: 'sqlite:///{store}'}}"
    overrides = ["train.epochs=50", "evaluate=[]", tracking]
    found = write_batch_file("tiny.yaml", overrides, Allocation(tasks_per_node=2), "night")
    (here / "job.sh").write_text(found.text)
    job = slurm.submit(str(here / "job.sh"))
    warned = ["scancel", "--batch", "--signal=USR1", str(job)]
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1"]
    for restarts, stop in enumerate((["scontrol", "requeue", str(job)], warned, urgent)):
        wait_for_a_checkpoint(slurm, job, found.runs_dir, restarts)
        slurm.run(*stop, cwd=here)
    ended = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", within=900)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3")
    (run,) = found.runs_dir.iterdir()
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = [
        (line["step"], line["metrics"]["train/loss"])
        for line in lines
        if "train/loss" in line["metrics"]
    ]
    assert [step for step, _ in logged] == list(range(2, 301, 2))
    with sqlite3.connect(store) as database:
        sent = database.execute(
            "select run_uuid, step, value from metrics where key = 'train/loss' order by step"
        ).fetchall()
    assert len({run_uuid for run_uuid, _, _ in sent}) == 1
    assert [(step, value) for _, step, value in sent] == logged


def wait_for_a_checkpoint(slurm: Slurm, job: int, runs_dir: Path, restarts: int) -> None:
    """Until the job has saved something since it was started for the last time."""
    end = time.monotonic() + 200
    while (facts := slurm.job(job))["JobState"] != "RUNNING" or int(facts["Restarts"]) != restarts:
        assert time.monotonic() < end, facts
        time.sleep(0.1)
    began = time.time()
    while not any(path.stat().st_mtime > began for path in runs_dir.glob("*/checkpoints/*.pt")):
        assert time.monotonic() < end, list(runs_dir.rglob("*"))
        time.sleep(0.05)
