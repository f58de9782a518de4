"""Options that several commands have, and checks of what was given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from sslkit.errors import RecipeError

from .completion import complete_override, complete_recipe

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--override",
        metavar="PATH=VALUE",
        help="Change a field: train.epochs=5.",
        autocompletion=complete_override,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
DEVICES = ("auto", "cpu", "cuda", "mps")
DIRECTIONS: tuple[Literal["highest", "lowest"], ...] = ("highest", "lowest")
BUDGETS: tuple[Literal["epochs", "time"], ...] = ("epochs", "time")
EXPORT_FORMATS = ("timm", "onnx", "torch-export")

RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A recipe file, or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]
OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe file, or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]

_Choice = TypeVar("_Choice", bound=str)


def one_of(given: str, valid: tuple[_Choice, ...], option: str) -> _Choice:
    """`given` as one of the valid words of an option."""
    for choice in valid:
        if choice == given:
            return choice
    raise RecipeError(f"{option}: got {given!r}; valid is {', '.join(valid)}")


def processes(given: str, most: int | None = None) -> int:
    """The number of `--nproc`. most: that can be."""
    number = int(given) if re.fullmatch(r"[0-9]{1,9}", given.strip()) else 0
    if number < 1 or (most is not None and number > most):
        upwards = "from 1" if most is None else f"from 1 to {most:,} on this machine"
        raise RecipeError(f"--nproc: got {given[:40]!r}; valid is a whole number {upwards}")
    return number


def required(recipe: str | None) -> str:
    """The recipe of a command that can do without one only in another mode."""
    if recipe is None:
        raise RecipeError("a recipe is needed here")
    return recipe


def expand_home(word: str) -> str:
    """A word of the command line whose path begins with `~`, as shells leave it in `--out=~/x` and
    in quotes, with the home it stands for."""
    option, path = re.fullmatch(r"(--[a-z-]+=)?(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    if not path.startswith("~"):
        return word
    try:
        return f"{option or ''}{Path(path).expanduser()}"
    except RuntimeError:  # a user that this machine does not know: it may be a name as it is
        return word
