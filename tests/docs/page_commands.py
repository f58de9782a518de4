"""Commands of a page that are not executed: what a shell would start, and whether the program
would take it.

A block marked `parse` goes through a real bash, in which every program notes its words and does
nothing: quotes, pipes, loops and `$(...)` are read as a reader's shell reads them. Then each
command is held against the program itself: the options and recipes of sslkit, the targets of the
Makefile, the parsers of the tools under `tests/`."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import typer
from pages import REPOSITORY
from torch.distributed.run import get_args_parser
from typer.main import get_command

from sslkit.cli import options
from sslkit.cli.app import app
from sslkit.errors import SSLKitError
from sslkit.experiment.check import check_without_data
from sslkit.recipe import load_data_block, load_recipe, shipped_recipes
from sslkit.workflows.compare.arms import variations

Words = Sequence[str]

_UsageError: Any = typer.BadParameter.__mro__[2]
"""As in `sslkit.cli.app`: a public class derives from it."""
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|OUTPUT|runs/\S+|\S*/runs/\S+")
"""RUN, A, or a run folder: what a page cannot name for its reader."""


def started_commands(script: str) -> list[list[str]]:
    """The words of every command that bash starts for a script, in order. A program that this
    module does not know is an error, as is whatever else bash refuses."""
    functions = "\n".join(f'{name}() {{ _note {name} "$@"; }}' for name in PROGRAMS)
    # What comes through a pipe is read first, as by any program: the one before it has then ended.
    note = "_note() { while read -r _; do :; done; printf '%s\\0' \"$@\" '' >&3; echo OUTPUT; }"
    text = re.sub(r"(?m)(^|[\s(|;&])\.venv/bin/", r"\1", script)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f"exec 3>&2\nPATH=\n{note}\n{functions}\n{text}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.replace("\0", " ")
    return [each.split("\0") for each in done.stderr.split("\0\0")[:-1]]


def check_commands(script: str) -> None:
    """Raises AssertionError for a script with a command that its program would refuse, or none."""
    commands = started_commands(script)
    assert commands
    for words in commands:
        _check_command(words)


def _check_command(words: Words) -> None:
    try:
        PROGRAMS[words[0]](list(words[1:]))
    except (SSLKitError, _UsageError, ImportError, SystemExit) as error:  # argparse exits
        said = error.format_message() if isinstance(error, _UsageError) else error
        raise AssertionError(f"{' '.join(words)}: {said}") from error


# sslkit


@cache
def _root() -> Any:
    return get_command(app)


def command_of(words: Words) -> tuple[Any, list[str]]:
    """The command of sslkit that is named first, and the words after its name."""
    command, rest = _root(), list(words)
    if rest and any(rest[0] in parameter.opts for parameter in command.params):
        return command, rest
    while hasattr(command, "commands"):
        found = command.commands.get(rest.pop(0) if rest else None)
        assert found is not None, f"sslkit has no command {' '.join(words)}"
        command = found
    return command, rest


def _check_sslkit(words: Words) -> None:
    command, rest = command_of([word for word in words if word != "--debug"])
    if command is _root():  # `sslkit --version`: of its options alone
        return
    given = command.make_context(command.name, rest).params
    _check_choices(given)
    overrides = list(given.get("override") or ())
    if given.get("protocol"):
        names = ", ".join(f"{{name: {each}}}" for each in given["protocol"].split(","))
        overrides.insert(0, f"evaluate=[{names}]")
    if command.name == "check":  # -o sets fields of the component
        return
    for source in _recipes_in(given):
        for variation in variations(given.get("vary") or ()):
            check_without_data(load_recipe(source, [*overrides, *variation]))


def _check_choices(given: dict[str, Any]) -> None:
    """What commands check after their words were parsed."""
    valid = {"match": options.BUDGETS, "format": options.EXPORT_FORMATS, "split": options.SPLITS}
    for name, choices in valid.items():
        if name in given:
            options.one_of(given[name], choices, f"--{name}")
    if given.get("devices"):
        assert re.fullmatch(r"cpu(,cpu)*|cuda:\d+(,cuda:\d+)*", given["devices"])
    if isinstance(given.get("nproc"), str):
        options.processes(given["nproc"])
    if given.get("backbone"):
        assert timm.is_model(given["backbone"]), f"--backbone {given['backbone']}: timm has none"


def _recipes_in(given: dict[str, Any]) -> list[str]:
    """The shipped recipes that a command names; the quickstart's fields stand for those of a run
    or of a recipe that the reader puts there."""
    named = [given.get(key) for key in ("recipe", "source")]
    named += [*(given.get("inputs") or ()), *(given.get("recipes") or ())]
    found = {_shipped(str(each)) for each in named if each}
    return sorted(found or {"quickstart"}) if "override" in given else sorted(found)


def _shipped(text: str) -> str:
    if text.startswith("{"):
        load_data_block(text)
        return "quickstart"
    if _PLACEHOLDER.fullmatch(text):
        return "quickstart"
    name = text.removesuffix(".yaml").removeprefix("recipes/")
    assert name in shipped_recipes(), f"no recipe {text}"
    assert not text.startswith("recipes/") or (REPOSITORY / text).is_file(), f"no file {text}"
    return name


# Other programs


def _check_make(words: Words) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make {target}"


def _check_pip(words: Words) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert words[0] == "install", words
    words = [word for word in words if word not in ("--upgrade", "--pre")]
    for option, value in pairwise(words):
        if option == "--group":
            assert value in project["dependency-groups"], value
        elif option == "-e":
            assert (REPOSITORY / value / "pyproject.toml").is_file(), value
        elif not option.startswith("-") and not value.startswith("-"):
            name, _, extra = value.removesuffix("]").partition("[")
            importlib.metadata.version(name)
            assert not extra or extra in project["project"]["optional-dependencies"], value


def _check_python(words: Words) -> None:
    words = words[2:] if words[0] == "-W" else words
    assert words[0] == "-m", f"python {words[0]}: a file is for a block that is executed"
    module, rest = words[1], list(words[2:])
    if module == "pytest":
        for path in (word for word in rest if "/" in word):
            assert (REPOSITORY / path).exists(), path
    elif module.startswith("tests."):
        _check_tool(module, rest)
    elif module == "sslkit":
        _check_sslkit(rest)
    else:
        raise AssertionError(f"python -m {module} is not known here")


def _check_tool(module: str, words: Words) -> None:
    """A program under `tests/`, which `python -m` finds in the working folder."""
    sys.path.insert(0, str(REPOSITORY))
    try:
        found = importlib.import_module(f"{module}.__main__" if _is_package(module) else module)
    finally:
        sys.path.remove(str(REPOSITORY))
    if hasattr(found, "_parser"):
        found._parser().parse_args(words)
    else:
        assert not words, f"python -m {module} takes no words"


def _is_package(module: str) -> bool:
    return (REPOSITORY / Path(*module.split("."))).is_dir()


def _check_torchrun(words: Words) -> None:
    given = get_args_parser().parse_args(words)
    assert given.module, f"torchrun {words}: without -m it starts a file"
    _check_python(["-m", given.training_script, *given.training_script_args])


def _check_srun(words: Words) -> None:
    """Its own options are SLURM's; what it starts is ours."""
    _check_sslkit(words[words.index("sslkit") + 1 :])


def _check_nothing(words: Words) -> None:
    """A program of others, of which no parser is at hand."""


PROGRAMS: dict[str, Callable[[Words], None]] = {
    "sslkit": _check_sslkit,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_python,
    "torchrun": _check_torchrun,
    "srun": _check_srun,
    "sbatch": _check_nothing,
    "jq": _check_nothing,
    "pre-commit": _check_nothing,
}
