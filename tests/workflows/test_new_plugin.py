"""`sslkit plugins new`: what it makes works as it is, and what it refuses leaves nothing behind."""

from __future__ import annotations

import errno
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest
import yaml

from sslkit import INTERFACE_VERSION
from sslkit.cli.app import main
from sslkit.errors import RecipeError
from sslkit.host.plugins import HOOK_KINDS, KINDS
from sslkit.workflows.new_plugin import LICENSES, LONGEST_NAME, new_plugin
from tests.conftest import REPOSITORY

TEMPLATES = REPOSITORY / "templates" / "plugin"
LONGEST = "abcdefghijklmnopqrst"
RUFF = importlib.util.find_spec("ruff") is not None
AUTHOR = 'Ada "Countess" Lovelace \\ Söhne'


def texts(folder: Path) -> dict[str, str]:
    """Path in a package -> text, of every file that is text."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".npy" and "__pycache__" not in path.parts
    }


# --- What it makes --------------------------------------------------------------------------------


def test_there_is_a_template_for_every_kind() -> None:
    assert {path.name for path in (TEMPLATES / "kinds").iterdir()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_has_its_names_and_none_of_the_template(kind: str, tmp_path: Path) -> None:
    made = new_plugin("two-words", kind, tmp_path, "mit", AUTHOR)
    found = texts(tmp_path / "sslkit-two-words")
    assert made.component == "two_words"
    assert set(made.files) >= found.keys()
    assert {f"src/sslkit_two_words/{kind}.py", "src/sslkit_two_words/recipes/two_words.yaml",
            f"tests/test_{kind}.py", "tests/test_conformance.py", "README.md", "LICENSE",
            ".gitignore", ".github/workflows/test.yml"} <= found.keys()  # fmt: skip
    for path, text in found.items():
        for word in ("newname", "newkind", "NewName", "NewLicense", "NewYear", "NewAuthor"):
            assert word not in text, path
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert "class TwoWords(" in found[f"src/sslkit_two_words/{kind}.py"]
    project = tomllib.loads(found["pyproject.toml"])["project"]
    assert project["name"] == "sslkit-two-words"
    assert project["license"] == "MIT"
    assert project["authors"] == [{"name": AUTHOR}]
    assert project["entry-points"] == {"sslkit": {"two_words": "sslkit_two_words"}}
    assert f"Copyright (c) {date.today().year} {AUTHOR}\n" in found["LICENSE"]
    versions = yaml.safe_load(found[".github/workflows/test.yml"])["jobs"]["test"]["strategy"]
    assert versions["matrix"]["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_hook_module_states_its_interface_and_its_name(kind: str, tmp_path: Path) -> None:
    new_plugin("hooked", kind, tmp_path)
    path = tmp_path / "sslkit-hooked/src/sslkit_hooked/__init__.py"
    spec = importlib.util.spec_from_file_location("sslkit_hooked_by_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = next(hook for hook, of_kind in HOOK_KINDS.items() if of_kind == kind)
    registered: Mapping[str, str] = getattr(module, hook)()
    assert registered == {"hooked": f"sslkit_hooked.{kind}:Hooked"}
    assert module.sslkit_interface == INTERFACE_VERSION


@pytest.mark.skipif(not RUFF, reason="ruff is not installed; `make test-all` has it")
@pytest.mark.parametrize("name", ["x", LONGEST])
def test_short_and_long_names_leave_every_kind_in_style(name: str, tmp_path: Path) -> None:
    assert len(LONGEST) == LONGEST_NAME
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        new_plugin(name, kind, tmp_path / kind)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_class_whose_name_the_module_has_already_gets_its_kind(tmp_path: Path) -> None:
    new_plugin("tensor", "loss", tmp_path)
    module = (tmp_path / "sslkit-tensor/src/sslkit_tensor/loss.py").read_text()
    assert "class TensorLoss(Loss):" in module
    assert "from torch import Tensor\n" in module


def test_the_prefix_of_the_distribution_may_be_given(tmp_path: Path) -> None:
    assert new_plugin("sslkit-mine", "head", tmp_path).path == tmp_path / "sslkit-mine"


@pytest.mark.parametrize("license", LICENSES)
def test_the_licence_is_the_one_that_was_chosen(license: str, tmp_path: Path) -> None:
    new_plugin("mine", "loss", tmp_path, license, "Ada Lovelace")
    found = texts(tmp_path / "sslkit-mine")
    year = date.today().year
    assert f"Copyright {year} Ada Lovelace. {LICENSES[license]}, see" in found["README.md"]
    first_line = {
        "apache-2.0": (REPOSITORY / "LICENSE").read_text().partition("\n")[0],
        "mit": "MIT License",
        "bsd-3-clause": "BSD 3-Clause License",
    }
    assert found["LICENSE"].startswith(first_line[license] + "\n")
    if license == "apache-2.0":
        assert found["LICENSE"] == (REPOSITORY / "LICENSE").read_text()  # not to be filled in
    else:
        assert str(year) in found["LICENSE"].splitlines()[2]


def test_the_author_is_that_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\n\tname = Grace Hopper\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.chdir(tmp_path)
    new_plugin("mine", "loss", tmp_path, "mit")
    assert "Grace Hopper" in (tmp_path / "sslkit-mine/LICENSE").read_text()


def test_without_git_the_author_is_left_general(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    new_plugin("mine", "loss", tmp_path, "mit")
    assert "The authors of sslkit-mine" in (tmp_path / "sslkit-mine/LICENSE").read_text()


def test_the_command_ends_with_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plugins", "new", "my-loss", "--kind", "loss", "--folder", str(tmp_path)])
    assert ended.value.code == 0
    *_, install, test, run = capsys.readouterr().out.splitlines()
    assert install == f"  pip install -e '{tmp_path}/sslkit-my-loss[dev]'"
    assert test == f"  pytest {tmp_path}/sslkit-my-loss"
    assert run == "  sslkit run my_loss"


def test_the_help_names_every_kind_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plugins", "new", "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in (*KINDS, *LICENSES))


# --- What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "such as 'my-loss'"),
        ("MyLoss", "such as 'my-loss'"),
        ("my loss", "such as 'my-loss'"),
        ("3d", "a letter first"),
        ("my--loss", "such as 'my-loss'"),
        ("my-", "such as 'my'"),
        ("../evil", "such as 'evil'"),
        ("/tmp/evil", "such as 'tmp-evil'"),
        ("a.b", "such as 'a-b'"),
        ("bell\x07", r"got 'bell\\x07'"),
        ("line\nbreak", "such as 'line-break'"),
        ("überlauf", "small letters"),
        ("x" * 21, "at most 20"),
        ("class", "Python"),
        ("sslkit-import", "Python"),
        ("null", "YAML"),
        ("yes", "YAML"),
        ("loss", "is a kind of component"),
        ("nt-xent", "taken by the loss of sslkit"),
        ("simclr", "taken by the \\w+ of sslkit"),
        ("byol", "taken by the method of sslkit-byol"),
        ("quickstart", "a recipe"),
        ("series", "taken by the augmentation of sslkit-series"),
    ],
)
def test_a_name_that_is_none_or_is_taken_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        new_plugin(name, "loss", tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_name_whose_module_is_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sslkit_mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="the module sslkit_mine is installed"):
        new_plugin("mine", "loss", tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "los"}, "--kind: got 'los', did you mean 'loss'"),
        ({"license": "gpl"}, "--license: got 'gpl'. Valid: apache-2.0"),
        ({"author": "Ada\nMIT"}, "--author"),
        ({"author": "   "}, "--author"),
        ({"author": "\x1b[31mAda"}, "--author"),
        ({"folder": Path("no/such/folder")}, "--folder: no/such/folder is no folder"),
    ],
)
def test_other_arguments_that_make_no_sense_are_refused(
    fields: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=said) as refused:
        new_plugin(**{"name": "mine", "kind": "loss", **fields})  # type: ignore[arg-type]
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder is closed for root here")
def test_a_folder_that_takes_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--folder: /proc cannot be written to \(.+\); give"):
        new_plugin("mine", "loss", Path("/proc"))


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_what_is_there_already_stays(there: str, tmp_path: Path) -> None:
    target = tmp_path / "sslkit-mine"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    with pytest.raises(RecipeError, match="exists already"):
        new_plugin("mine", "loss", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sslkit-mine"]
    assert there != "folder" or not list(target.iterdir())


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_fault_on_the_way_leaves_nothing(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    written: list[Path] = []

    def failing(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 5:
            raise fault
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(type(fault)):
        new_plugin("mine", "loss", tmp_path)
    assert len(written) == 5
    assert not list(tmp_path.iterdir())


# --- That it works --------------------------------------------------------------------------------


def succeed(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What a command prints that must end with 0 and without a traceback."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So that torch is read once."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow  # installs, tests and checks a package: a minute for each kind
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_works_as_it_is(
    kind: str, tmp_path: Path, environment: dict[str, str], mypy_cache: Path
) -> None:
    """Its tests: its values, the laws of its kind, a run of its recipe; and its types."""
    succeed(f"sslkit plugins new my-own --kind {kind} --license mit", tmp_path, environment)
    package = tmp_path / "sslkit-my-own"
    succeed("pip install -e sslkit-my-own", tmp_path, environment)
    succeed("pytest sslkit-my-own", tmp_path, environment)
    succeed(f"mypy --cache-dir {mypy_cache}", package, environment)
    if kind in ("method", "dataset"):  # which bring what others do: code alone, and files beside it
        succeed("ruff check . && ruff format --check .", package, environment)
        succeed("sslkit verify my_own", tmp_path, environment)
        succeed("pip wheel -w wheels ./sslkit-my-own", tmp_path, environment)


@pytest.mark.slow  # builds a wheel of sslkit
@pytest.mark.timeout(300)
def test_the_templates_are_in_the_wheel(tmp_path: Path, environment: dict[str, str]) -> None:
    """And are found in it: from outside the repository, by an installation of the wheel."""
    succeed(f"pip wheel -w . {REPOSITORY}", tmp_path, environment)
    succeed("python -m zipfile -e sslkit-*.whl installed", tmp_path, environment)
    inside = tmp_path / "installed" / "sslkit" / "templates" / "plugin"
    listed = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(TEMPLATES).as_posix()
        for path in TEMPLATES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert listed == expected
    command = "python -m sslkit.cli plugins new my-own --kind dataset"
    succeed(command, tmp_path, {**environment, "PYTHONPATH": str(tmp_path / "installed")})
    assert (tmp_path / "sslkit-my-own/src/sslkit_my_own/sample/train.npy").is_file()
