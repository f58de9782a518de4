"""What shells offer at a TAB: in real shells, fast, and silent whatever is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sslkit.cli.recipe_fields import complete_path, overridden
from sslkit.host.plugins import load_plugins
from sslkit.host.schema_cache import keep_schema, schema_at_hand
from sslkit.recipe import json_schema
from sslkit.runs.folder import RunFolder
from tests.host.plugin_distributions import write_distribution

BIN = Path(sys.executable).parent
RECIPE = """\
name: tiny
data: {name: digits}
method:
  name: simclr
  head: {name: mlp, out_dim: 64}
  loss: {name: nt_xent, temperature: 0.2}
optimizer: {name: sgd, lr: 3e-4}
train: {epochs: 2, batch_size: 64}
evaluate:
  - {name: knn, k: 20}
  - {name: linear}
"""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema(load_plugins().registry)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, schema: dict[str, Any]) -> Path:
    """A cache with the schema of what is installed."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        keep_schema(json.dumps(schema))
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with recipes, runs and other things."""
    folder = tmp_path / "work"
    for run in ("new-1a2b", "older-3c4d"):
        (folder / "runs" / run).mkdir(parents=True)
        RunFolder(folder / "runs" / run).recipe.write_text(RECIPE)
    os.utime(folder / "runs" / "older-3c4d", (1, 1))
    (folder / "runs" / "notes").mkdir()
    (folder / "mine.yaml").write_text(RECIPE)
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "inner" / "deep" / "x.yaml").write_text(RECIPE)
    (folder / "photo.png").write_bytes(b"")
    return folder


# --- Paths of overrides ---------------------------------------------------------------------------


def offered(schema: dict[str, Any], incomplete: str, overrides: Sequence[str] = ()) -> list[str]:
    import yaml

    tree = overridden(yaml.safe_load(RECIPE), overrides)
    return [word for word, _ in complete_path(schema, tree, incomplete)]


@pytest.mark.parametrize(
    ("incomplete", "words"),
    [
        ("method.loss.tem", ["method.loss.temperature=", "method.loss.temperature=0.2"]),
        ("method.l", ["method.loss.", "method.loss_weight="]),
        ("method.los", ["method.loss.", "method.loss_weight="]),
        ("method.head.out_d", ["method.head.out_dim=", "method.head.out_dim=64"]),
        ("method.loss.name=norm", ["method.loss.name=normalized_mse"]),
        ("method.loss.name=in", ["method.loss.name=info_nce"]),
        ("train.compile=", ["train.compile=false", "train.compile=true",
                            "train.compile=if_available"]),
        ("train.channels_last=f", ["train.channels_last=false"]),
        ("train.precision=b", ["train.precision=bf16"]),
        ("train.max_steps=", ["train.max_steps=null"]),
        ("train.online", ["train.online_probe.lr=", "train.online_probe.weight_decay="]),
        ("evaluate.", ["evaluate.0.", "evaluate.1."]),
        ("evaluate.0.k", ["evaluate.0.k=", "evaluate.0.k=20"]),
        ("schedule.name=lin", ["schedule.name=linear"]),
        ("schedule.warm", ["schedule.warmup_epochs=", "schedule.warmup_epochs=0"]),
        ("data.name=wav", ["data.name=waves"]),
        ("nowhere.x", []),
        ("seed.x", []),
        ("method.loss.nowhere=", []),
        ("evaluate.7.k", []),
        ("", ["name=", "seed=", "data.", "augmentation.", "backbone.", "method.", "optimizer.",
              "schedule.", "train.", "evaluate.", "evaluation_precision=", "callbacks=",
              "tracking.", "expect=", "runs_dir=", "origins="]),
    ],
)  # fmt: skip
def test_paths_and_values(schema: dict[str, Any], incomplete: str, words: list[str]) -> None:
    assert offered(schema, incomplete) == words


def test_names_are_those_of_the_kind_the_one_at_hand_first(schema: dict[str, Any]) -> None:
    words = offered(schema, "method.loss.name=")
    assert words[0] == "method.loss.name=nt_xent"
    names = load_plugins().registry.names("loss")
    assert sorted(words) == sorted(f"method.loss.name={name}" for name in names)


def test_overrides_further_left_count(schema: dict[str, Any]) -> None:
    other = ["method.loss.name=info_nce"]
    assert "method.loss.symmetric=" in offered(schema, "method.loss.", other)
    assert "method.loss.symmetric=" not in offered(schema, "method.loss.")
    assert offered(schema, "method.loss.temperature=", other) == ["method.loss.temperature=0.1"]
    block = ["method.loss={name: nt_xent, temperature: 0.7}"]
    assert offered(schema, "method.loss.temperature=", block) == ["method.loss.temperature=0.7"]
    number = ["method.loss.temperature={name: cosine, start: 0.5, end: 0.1}"]
    assert offered(schema, "method.loss.temperature.e", number) == [
        "method.loss.temperature.end=", "method.loss.temperature.end=0.1",
    ]  # fmt: skip
    assert offered(schema, "evaluate.", ["evaluate=[]", "odd", "a.b.c=1"]) == []


def test_every_path_of_a_recipe_is_reached(schema: dict[str, Any]) -> None:
    """From TAB to TAB: whatever is offered and goes on, leads on."""
    pending, seen = [""], set()
    while pending:
        word = pending.pop()
        for offer in offered(schema, word):
            if offer.endswith(".") and offer not in seen:
                pending.append(offer)
            seen.add(offer)
    assert {"evaluate.1.solver=", "method.loss.chunk_elements=", "train.online_probe.lr="} <= seen
    assert len(seen) > 80


# --- The command, as shells call it ---------------------------------------------------------------


Tab = Callable[..., list[str]]


@pytest.fixture
def tab(work: Path, cache: Path) -> Tab:
    """What the command answers to bash, which has cut the line at `=` and `:`."""

    def ask(line: str, **environment: str) -> list[str]:
        words = [w for word in line.split(" ") for w in re.split(r"(?<=[=:])|(?=[=:])", word)]
        done = subprocess.run(
            [BIN / "sslkit"],
            cwd=work,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "_SSLKIT_COMPLETE": "complete_bash",
                "COMP_WORDS": "\n".join(words),
                "COMP_CWORD": str(len(words) - 1),
                "XDG_CACHE_HOME": str(cache),
                **environment,
            },
        )
        assert done.stderr == ""
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sslkit rec", ["recipes"]),
        ("sslkit run quicks", ["quickstart"]),
        ("sslkit run mi", ["mine.yaml"]),
        ("sslkit run ./mi", ["./mine.yaml"]),
        ("sslkit run inn", ["inner/deep/x.yaml"]),
        ("sslkit run photo", []),
        ("sslkit recipes copy quicks", ["quickstart"]),
        ("sslkit plan mine.yaml -o method.loss.tem", ["method.loss.temperature=",
                                                      "method.loss.temperature=0.2"]),
        ("sslkit run mine.yaml -o method.loss.name=norm", ["normalized_mse"]),
        ("sslkit run mine.yaml -o method.loss.name=in", ["info_nce"]),
        ("sslkit run -o method.loss.name=info_nce mine.yaml -o method.loss.sym",
         ["method.loss.symmetric=", "method.loss.symmetric=true"]),
        ("sslkit run --resume runs/new-1a2b -o evaluate.1.sol",
         ["evaluate.1.solver=", "evaluate.1.solver=lbfgs"]),
        ("sslkit compare mine.yaml --vary train.pr", ["train.precision=", "train.precision=fp32"]),
        ("sslkit run --resume ", ["auto", "runs/new-1a2b", "runs/older-3c4d"]),
        ("sslkit eval runs/o", ["runs/older-3c4d"]),
        ("sslkit export ", ["runs/new-1a2b", "runs/older-3c4d"]),
        ("sslkit eval --protocol knn,li", ["knn,linear"]),
        ("sslkit export runs/new-1a2b --format to", ["torch-export"]),
        ("sslkit embed runs/new-1a2b --device=cp", ["cpu"]),
        ("sslkit plugins show nt", ["nt_xent"]),
        ("sslkit plugins show loss:nt", ["nt_xent"]),
        ("sslkit plugins show schedule:line", ["linear"]),
        ("sslkit plugins list --kind lo", ["loss"]),
        ("sslkit plugins check nt_xent -o temp", ["temperature=", "temperature=0.5"]),
        ("sslkit plugins check schedule:linear -o epo", ["epochs=", "epochs=null"]),
        ("sslkit plugins check mlp -o hidden_d", ["hidden_dim=", "hidden_dim=null"]),
        ("sslkit plugins check nowhere -o n", []),
        ("sslkit plugins new mine --kind au", ["augmentation"]),
        ("sslkit reproduce runs/n", ["runs/new-1a2b"]),
        ("sslkit reproduce runs/new-1a2b -o train.dev", ["train.device=", "train.device=auto"]),
        ("sslkit runs show ", ["runs/new-1a2b", "runs/older-3c4d"]),
        ("sslkit run nowhere.yaml -o train.ep", ["train.epochs="]),
    ],
)  # fmt: skip
def test_a_tab(line: str, words: list[str], tab: Tab) -> None:
    assert sorted(tab(line)) == sorted(words)


def test_names_that_kinds_share_are_told_apart(tab: Tab) -> None:
    assert "schedule:linear" in tab("sslkit plugins show sch")
    assert "evaluator:linear" in tab("sslkit plugins show ev")


def test_a_tab_imports_nothing_heavy(work: Path, cache: Path) -> None:
    program = (
        "import sys, atexit\n"
        "heavy = ['torch', 'timm', 'mlflow', 'numpy', 'sklearn', 'pyarrow']\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules]))\n"
        "from sslkit.cli import main\n"
        "main()"
    )
    line = "sslkit\nrun\nmine.yaml\n-o\nmethod.loss.tem"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, capture_output=True, text=True, check=True,
        env={**os.environ, "_SSLKIT_COMPLETE": "complete_bash", "COMP_WORDS": line,
             "COMP_CWORD": "4", "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    assert done.stdout.split("\n")[-2:] == ["[]", ""]
    assert "method.loss.temperature=" in done.stdout


def test_a_reader_that_leaves_is_no_fault(work: Path, cache: Path) -> None:
    """As `| head -1` does; the answer is then of no use to anybody."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [BIN / "sslkit"], cwd=work, stdout=theirs, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "_SSLKIT_COMPLETE": "complete_bash", "COMP_WORDS": "sslkit\nrun\n",
             "COMP_CWORD": "2", "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow  # 5 seconds
def test_every_fault_is_an_empty_answer(work: Path, tab: Tab, tmp_path: Path) -> None:
    (work / "broken.yaml").write_text("method: {name: [\n")
    assert tab("sslkit run broken.yaml -o train.ep") == ["train.epochs="]
    (work / "odd.yaml").write_text("train: [1]\nmethod: 7\nevaluate: {a: b}\n")
    assert tab("sslkit run odd.yaml -o train.ep") == []
    assert "seed=" in tab("sslkit run odd.yaml -o ")
    for number in ("x", "-1", "99"):
        assert tab("sslkit run qui", COMP_CWORD=number) in ([], ["quickstart"])
    assert tab("sslkit nowhere -o x") == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert tab("sslkit run mine.yaml -o train.ep", XDG_CACHE_HOME=str(blocked)) == []


def test_a_noisy_plugin_is_not_heard(work: Path, tab: Tab, tmp_path: Path) -> None:
    noise = "import sys\nprint('noise'); print('noise', file=sys.stderr)\nraise SystemExit(3)\n"
    write_distribution(tmp_path / "site", "noisy", {"noisy.py": noise}, "n = noisy")
    assert tab("sslkit plugins show nt", PYTHONPATH=str(tmp_path / "site")) == ["nt_xent"]


def test_a_damaged_cache_is_passed_over(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy))
    (file,) = (copy / "sslkit").glob("*.json")
    found, is_current = schema_at_hand()
    assert found is not None
    assert is_current
    older = file.with_name(file.name[:-6] + ("1" if file.name[-6] == "0" else "0") + ".json")
    file.rename(older)
    assert schema_at_hand() == (found, False)
    keep_schema(json.dumps(found))
    assert list((copy / "sslkit").glob("*.json")) == [file]
    for damage in ("", "{", "[]", '{"a": 1, "a": 2}'):
        file.write_text(damage)
        assert schema_at_hand() == (None, False)


@pytest.mark.slow  # a process of its own imports every component
def test_the_first_tab_has_the_fields_read_in_the_background(
    tab: Tab, tmp_path: Path, work: Path
) -> None:
    """By the sslkit that is installed, whatever modules lie where the TAB was pressed."""
    for name in ("sslkit", "torch", "json"):
        (work / f"{name}.py").write_text("open('trap', 'w')\n")
    fresh = str(tmp_path / "fresh")
    assert tab("sslkit run mine.yaml -o method.loss.te", XDG_CACHE_HOME=fresh) == []
    deadline = time.monotonic() + 90
    while not list(Path(fresh).rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = tab("sslkit run mine.yaml -o method.loss.te", XDG_CACHE_HOME=fresh)
    assert found == ["method.loss.temperature=", "method.loss.temperature=0.2"]
    assert not (work / "trap").exists()


# --- Real shells ----------------------------------------------------------------------------------


class Shell:
    """An interactive shell in a terminal of its own."""

    def __init__(self, words: list[str], work: Path, cache: Path) -> None:
        home = work.parent / "home"
        home.mkdir(exist_ok=True)
        child, self._terminal = pty.fork()
        if child == 0:
            os.chdir(work)
            os.execvpe(words[0], words, {  # noqa: S606
                **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home),
                "XDG_CACHE_HOME": str(cache), "XDG_CONFIG_HOME": str(home), "TERM": "dumb",
                "PS1": "> ", "PROMPT": "> ", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
            })  # fmt: skip
        self._child = child
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def type(self, keys: str, until: str, patience_s: float = 30.0) -> str:
        """What the terminal shows after these keys, up to a pattern; all that it shows where the
        pattern does not come."""
        os.write(self._terminal, keys.encode())
        shown, deadline = "", time.monotonic() + patience_s
        while not re.search(until, shown) and time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.1)[0]:
                text = os.read(self._terminal, 65536).decode(errors="replace")
                shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x07", "", text)
        return shown

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(sslkit --show-completion bash)"'),
    "zsh": (["zsh", "-f", "-i"],
            'autoload -Uz compinit; compinit -u; eval "$(sslkit --show-completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "sslkit --show-completion fish | source"),
}  # fmt: skip


@pytest.fixture(
    params=["bash", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fish", "zsh"))]
)
def shell(request: pytest.FixtureRequest, work: Path, cache: Path) -> Iterator[Shell]:
    words, start = START[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    made = Shell(words, work, cache)
    made.type("", "[>#%$] ")
    made.type(f"{start}; echo rea''dy\r", "ready")
    yield made
    made.close()


@pytest.mark.slow  # 4 seconds
def test_a_real_shell_completes_a_line(shell: Shell) -> None:
    """One line, word by word, each with a TAB, and run in the end."""
    shell.type("sslkit plan mi\t", "mine.yaml")
    shown = shell.type("-o method.loss.tem\t", "temperature=")
    assert "-o method.loss.temperature=" in shown
    clear = "\x15"
    shown = shell.type(f"{clear}sslkit plan mine.yaml -o method.loss.name=inf\t", "info_nce")
    assert "method.loss.name=info_nce" in shown
    shown = shell.type(f"{clear}sslkit plugins show loss:nt\t", "nt_xent")
    assert "loss:nt_xent" in shown
    shown = shell.type(f"{clear}sslkit eval runs/o\t", "older-3c4d")
    assert "runs/older-3c4d" in shown
    assert "error" not in shown.lower()
