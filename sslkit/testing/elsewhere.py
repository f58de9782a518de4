"""What a method does in another interpreter: one that orders sets and places objects in another
way, and whose forks can compute gradients."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit import installed_components
from sslkit.errors import RecipeError
from sslkit.recipe import Recipe

from .courses import courses_of_ranks
from .interpreters import TORCH, in_another_interpreter
from .laws import LawBrokenError, UntriedError
from .small_runs import SmallRuns, Taken, Tensors, take_steps
from .subject import Subject, is_importable, plugin_module, slot_of

_CALL = "from sslkit.testing.elsewhere import answer; answer()"
_COURSES = "courses.pt"
_COURSES_S = 240.0
"""Seconds that they may take: fewer than the interpreter has, which says then which rank waits."""


def steps_elsewhere(subject: Subject) -> dict[str, Any]:
    """What `described` says of the first steps in another interpreter. Raises UntriedError where
    another process cannot make the method."""
    return _ask(subject)


def courses_elsewhere(subject: Subject, size: int, folder: Path) -> list[Tensors]:
    """What `courses_of_ranks` finds with forks of another interpreter. folder: for what they leave.
    Raises UntriedError where another process cannot make the method, LawBrokenError with what
    failed there."""
    found = _ask(subject, size=size, folder=str(folder))
    if "broken" in found:
        raise LawBrokenError(found["broken"])
    courses: list[Tensors] = torch.load(folder / _COURSES, weights_only=True)
    return courses


def _ask(subject: Subject, **more: object) -> dict[str, Any]:
    """What another interpreter answers. more: what it is asked beyond the first steps."""
    module, cls = plugin_module(subject.slot), subject.slot.cls
    if not is_importable(module) or "<locals>" in cls.__qualname__:
        raise UntriedError(f"{module} is no file that another process can import")
    fields = {name: value for name, value in subject.slot.dump().items() if name != "name"}
    asked = {
        "module": module,
        "class": cls.__qualname__,
        "fields": fields,
        "recipe": subject.recipe.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        **more,
    }
    printed = in_another_interpreter(
        _CALL,
        given=json.dumps(asked),
        prepared=(*TORCH, "timm", "sslkit.testing.elsewhere"),
        what="another interpreter fails",
    )
    found: dict[str, Any] = json.loads(printed.rpartition("\n")[2])
    if "cannot" in found:
        raise UntriedError(found["cannot"])
    return found


def described(taken: Taken) -> dict[str, Any]:
    """Losses, and a hash of each tensor of the state, ready for JSON."""
    return {
        "losses": taken.losses,
        "state": {name: _hash(value) for name, value in taken.state.items()},
    }


def answer() -> None:
    """Takes the steps that standard input asks for and writes what they came to; the other side of
    `_ask`."""
    asked: Mapping[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    cls: Any = __import__(asked["module"], fromlist=["_"])
    for name in asked["class"].split("."):
        cls = getattr(cls, name)
    try:
        context = {"registry": installed_components()}
        recipe = Recipe.model_validate(asked["recipe"], context=context)
        subject = Subject(slot_of(cls, asked["fields"]), recipe)
    except (ValueError, RecipeError) as error:  # a class that no plugin registers, inside another
        found: dict[str, Any] = {"cannot": f"its recipe cannot be read again: {error}"}
    else:
        with subject.quiet():
            found = _answer(SmallRuns(subject), asked)
    sys.stdout.write("\n" + json.dumps(found))


def _answer(runs: SmallRuns, asked: Mapping[str, Any]) -> dict[str, Any]:
    if "size" not in asked:
        return described(take_steps(runs.training()))
    folder = Path(asked["folder"])
    try:
        courses = courses_of_ranks(runs, asked["size"], folder, _COURSES_S)
    except LawBrokenError as error:
        return {"broken": str(error)}
    torch.save(courses, folder / _COURSES)
    return {}


def _hash(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
