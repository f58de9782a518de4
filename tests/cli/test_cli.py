"""The command as a user meets it: output, exit codes, JSON, speed of the light commands."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from sslkit.cli import app, main
from sslkit.host.recipe_files import shipped_recipes
from tests.host.broken_recipes import BROKEN_RECIPES, BrokenRecipe


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def sslkit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command in this process."""

    def call(*words: str) -> Outcome:
        with pytest.raises(SystemExit) as exit_:
            main(words)
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return call


def process(words: Sequence[str], code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, then `code` in the same process."""
    program = (
        "import sys, atexit\n"
        f"def after():\n    {code or 'pass'}\n"
        "atexit.register(after)\n"
        f"from sslkit.cli import main\nmain({list(words)!r})"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["export", "--help"],
        ["plugins", "list"],
        ["recipes", "list"],
        [],
    ],
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    heavy = "['torch', 'timm', 'mlflow', 'torchvision', 'matplotlib', 'sklearn', 'pyarrow']"
    done = process(words, f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)")
    assert done.stderr.strip().endswith("[]"), done.stderr
    assert done.stdout


@pytest.mark.slow  # 12 seconds
def test_validation_imports_no_more_than_it_needs() -> None:
    """Packages that take seconds to import, and that a check of recipe and data does without."""
    heavy = "['sklearn', 'scipy', 'pandas', 'mlflow', 'matplotlib', 'pyarrow']"
    loaded = f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    done = process(["validate", "quickstart"], loaded)
    assert done.stdout.endswith("ok\n")
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.slow  # 4 seconds
def test_losses_do_not_import_the_compiler() -> None:
    code = "import sys, sslkit.nn.functional; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_without_a_command_it_helps(sslkit: Callable[..., Outcome]) -> None:
    outcome = sslkit()
    for command in ("run", "validate", "eval", "plugins", "recipes", "schema", "ui", "doctor"):
        assert f"\n  {command} " in outcome.out


@pytest.mark.parametrize("broken", BROKEN_RECIPES, ids=lambda broken: broken.name)
def test_broken_recipes(
    broken: BrokenRecipe, tmp_path: Path, sslkit: Callable[..., Outcome]
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(broken.text if isinstance(broken.text, bytes) else broken.text.encode())
    overrides = [word for override in broken.overrides for word in ("-o", override)]
    outcome = sslkit("run", str(path), *overrides)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("runs*"))
    lines = outcome.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for part in broken.expected:
        assert any(part.replace("FILE", str(path)) in line for line in lines), outcome.err

    validated = sslkit("validate", str(path), *overrides)
    assert validated.code == 2
    assert validated.out.splitlines() == [line.removeprefix("error: ") for line in lines]


@pytest.mark.slow  # 2 seconds
def test_impossible_combinations(tiny: Path, sslkit: Callable[..., Outcome]) -> None:
    """What only the data can tell is found before the first step, and before a run folder."""
    cases = {
        "data={name: digits}": "augmentation.saturation",
        "train.batch_size=97": "train.batch_size: 97 is more than the 96 training images",
        "train.batch_size=1": "simclr needs train.batch_size >= 2",
        "augmentation.num_views=1": "simclr contrasts views",
        "backbone.model=resnet18x": "did you mean",
        "backbone={name: timm, model: vit_tiny_patch16_224, stem: small}": "backbone.stem",
        "evaluate.0.k=500": "evaluate.0.k",
        "data={name: image_folder, train: /nowhere}": "/nowhere",
        "data={name: parquet, train: /nowhere.parquet}": "/nowhere.parquet",
        "augmentation.blur_kernel=4": "blur_kernel",
        "tracking={name: mlfow}": "did you mean 'mlflow'?",
    }
    for override, expected in cases.items():
        outcome = sslkit("run", str(tiny), "-o", override)
        assert outcome.code == 2, override
        assert expected in outcome.err, (override, outcome.err)
        assert "Traceback" not in outcome.err
    assert not (tiny.parent / "runs").exists()


def test_run_and_look(tiny: Path, sslkit: Callable[..., Outcome]) -> None:
    outcome = sslkit("run", str(tiny))
    assert outcome.code == 0
    assert "pixels" in outcome.out
    assert "knn top1" in outcome.out
    assert "run folder:" in outcome.out
    assert "step 2/" in outcome.err  # no terminal: plain lines
    (run_dir,) = (tiny.parent / "runs").iterdir()

    measured = json.loads(sslkit("eval", str(run_dir), "--protocol", "knn", "--json").out)
    saved = json.loads((run_dir / "results.json").read_text())
    knn = [row for row in saved["comparison"] if row["protocol"] == "knn"]
    assert measured["comparison"] == knn


def test_run_as_json(tiny: Path, sslkit: Callable[..., Outcome]) -> None:
    outcome = sslkit("run", str(tiny), "--json", "-o", "train.max_steps=1")
    document = json.loads(outcome.out)
    assert document["status"] == "finished"
    assert Path(document["run_dir"]).is_dir()
    assert "eval/knn/top1" in document["metrics"]


def test_dry_run(tiny: Path, sslkit: Callable[..., Outcome]) -> None:
    assert "18, 6 an epoch" in sslkit("run", str(tiny), "--dry-run").out
    assert json.loads(sslkit("run", str(tiny), "--dry-run", "--json").out)["total_steps"] == 18


def test_plugins_and_recipes(tmp_path: Path, sslkit: Callable[..., Outcome]) -> None:
    rows = json.loads(sslkit("plugins", "list", "--json").out)
    (builtin,) = [row for row in rows if row["distribution"] == "sslkit"]
    assert "nt_xent" in builtin["components"]["loss"]
    assert "temperature" in sslkit("plugins", "show", "nt_xent").out
    (shown,) = json.loads(sslkit("plugins", "show", "loss:nt_xent", "--json").out)
    assert [field["field"] for field in shown["fields"]] == ["temperature", "chunk_elements"]
    assert json.loads(sslkit("plugins", "show", "sslkit:nt_xent", "--json").out)[0] == {
        **shown, "name": "sslkit:nt_xent"
    }  # fmt: skip
    missing = sslkit("plugins", "show", "nt_xentt")
    assert missing.code == 2
    assert "no such component" in missing.err

    names = {row["name"] for row in json.loads(sslkit("recipes", "list", "--json").out)}
    assert {"quickstart", "simclr_r50", "simclr_cifar10_r18", "cpu/simclr_cifar10"} <= names
    copied = Path(sslkit("recipes", "copy", "quickstart", str(tmp_path)).out.strip())
    first, second, *_ = copied.read_text().splitlines()
    assert first == "# yaml-language-server: $schema=sslkit.schema.json"
    assert second.startswith("# SimCLR")
    assert json.loads((tmp_path / "sslkit.schema.json").read_text())["title"] == "sslkit recipe"
    again = sslkit("recipes", "copy", "quickstart", str(tmp_path))
    assert again.code == 2
    assert "exists already" in again.err


def test_copied_recipes_name_the_schema_beside_them(
    sslkit: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A recipe of a folder inside `recipes` names it there, and its copy beside itself."""
    shipped = shipped_recipes()["cpu/simclr_cifar10"]
    line = "# yaml-language-server: $schema="
    assert shipped.read_text().startswith(f"{line}../sslkit.schema.json\n")
    copied = sslkit("recipes", "copy", "cpu/simclr_cifar10", str(tmp_path / "mine.yaml"))
    assert copied.out == f"{tmp_path / 'mine.yaml'}\n"
    text = (tmp_path / "mine.yaml").read_text()
    assert text.count(line) == 1
    assert text.startswith(f"{line}sslkit.schema.json\n")
    assert text.partition("\n")[2] == shipped.read_text().partition("\n")[2]
    schema = tmp_path / "sslkit.schema.json"
    fresh = schema.read_text()
    schema.write_text('{"title": "sslkit recipe"}')  # an older one
    assert sslkit("schema", "--out", str(tmp_path)).out == f"{schema}\n"
    assert schema.read_text() == fresh
    schema.write_text('{"title": "mine"}')  # somebody else's
    again = sslkit("recipes", "copy", "quickstart", str(tmp_path))
    assert again.code == 0
    assert again.err == f"warning: {schema}: is no schema of sslkit and stays as it is; rename it\n"
    assert sslkit("schema", "--out", str(tmp_path)).code == 2
    assert schema.read_text() == '{"title": "mine"}'


def test_every_shipped_recipe_names_the_schema_at_the_root_of_its_folder() -> None:
    for name, path in shipped_recipes().items():
        first = path.read_text().partition("\n")[0]
        up = "../" * name.rpartition(":")[2].count("/")
        assert first == f"# yaml-language-server: $schema={up}sslkit.schema.json"


def test_schema_and_doctor(sslkit: Callable[..., Outcome]) -> None:
    schema = json.loads(sslkit("schema").out)
    assert "temperature" in json.dumps(schema)
    found = json.loads(sslkit("doctor", "--json").out)
    assert found["packages"]["torch"]
    assert "torch" in sslkit("doctor").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], "a recipe is needed"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "quickstar"], "quickstart"),
        (["run", "--resume", "nowhere"], "nowhere"),
        (["run", "quickstart", "--fork", "nowhere"], "nowhere"),
        (["run", "quickstart", "--fork", "a", "--resume", "b"], "exclude each other"),
        (["eval", "nowhere"], "nowhere"),
        (["rum"], "error: sslkit: no such command 'rum', did you mean 'run'? See: sslkit --help\n"),
        (
            ["run", "quickstart", "--sed", "1"],
            "error: sslkit run: no such option: --sed. See: sslkit run --help\n",
        ),
        (
            ["run", "a", "b"],
            "error: sslkit run: got unexpected extra argument (b). See: sslkit run --help\n",
        ),
        (["run", "-o"], "error: option '-o' requires an argument\n"),
        (["plan", "q", "--json=1"], "error: option '--json' does not take a value\n"),
        (["plugins", "lst"], "error: sslkit plugins: no such command 'lst', did you mean 'list'?"),
        (["compare"], "error: sslkit compare: missing argument 'RUN_OR_RECIPE...'. See: sslkit"),
        (["export", "x"], "error: sslkit export: missing option '--format'. See: sslkit export"),
        (["ui", "--port", "0"], ", got '0'. See: sslkit ui --help\n"),
        (["pack", "--size", "big"], ", got 'big'. See: sslkit pack --help\n"),
        (["embed", "x"], "error: name the file to write with --out\n"),
        (["run", "quickstart", "-o", "seed"], "-o seed"),
        (["plugins", "list", "--kind", "lose"], "lose"),
    ],
)
def test_wrong_words(words: list[str], expected: str, sslkit: Callable[..., Outcome]) -> None:
    outcome = sslkit(*words)
    assert outcome.code == 2
    assert expected in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("error: ")


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))
    if words and not hasattr(group, "commands"):
        yield words


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_refuses_an_option_in_one_line(
    words: Sequence[str], sslkit: Callable[..., Outcome]
) -> None:
    outcome = sslkit(*words, "--no-such-option")
    command = f"sslkit {' '.join(words)}"
    assert outcome.code == 2
    assert outcome.err == (
        f"error: {command}: no such option: --no-such-option. See: {command} --help\n"
    )


@pytest.mark.parametrize("group", ["plugins", "recipes"])
def test_a_group_without_a_command_shows_its_help(
    group: str, sslkit: Callable[..., Outcome]
) -> None:
    outcome = sslkit(group)
    assert outcome.code == 2
    assert outcome.err.startswith(f"Usage: sslkit {group} ")


def test_a_file_that_cannot_be_written(sslkit: Callable[..., Outcome]) -> None:
    outcome = sslkit("schema", "--out", "/nowhere/schema.json")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "/nowhere/schema.json" in outcome.err


def test_unexpected_failures_are_one_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Callable[..., Outcome]
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr("sslkit.builtin.losses.NTXent.forward", fail)
    outcome = sslkit("run", str(tiny))
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert line.startswith("error: ZeroDivisionError: somewhere (")
    assert "test_cli.py:" in line
    assert "--debug" in line
    assert "Traceback" not in outcome.err


def test_interrupted_before_the_first_step(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, sslkit: Callable[..., Outcome]
) -> None:
    def interrupt(*arguments: object, **fields: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sslkit.experiment.build.open_stores", interrupt)
    outcome = sslkit("run", str(tiny))
    assert outcome.code == 1
    assert outcome.err == "error: stopped by SIGINT before the first step; nothing was kept\n"
    assert not list((tiny.parent / "runs").iterdir())


def test_ui_on_a_busy_port(sslkit: Callable[..., Outcome]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        outcome = sslkit("ui", "--port", str(busy.getsockname()[1]))
    assert outcome.code == 2
    assert "choose another --port" in outcome.err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from sslkit.cli.output import print_json

    print_json({"a": [float("nan"), 1.0], "b": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": None}


def test_debug_shows_the_traceback(sslkit: Callable[..., Outcome]) -> None:
    from sslkit.errors import RecipeError

    with pytest.raises(RecipeError):
        main(["--debug", "run", "nowhere.yaml"])
