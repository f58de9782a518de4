"""The first steps of a method in another interpreter, which orders sets and places objects in
another way."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslkit import installed_components
from sslkit.errors import RecipeError
from sslkit.recipe import Recipe

from .interpreters import TORCH, in_another_interpreter
from .laws import UntriedError
from .small_runs import SmallRuns, Taken, take_steps
from .subject import Subject, is_importable, plugin_module, slot_of

_CALL = "from sslkit.testing.elsewhere import answer; answer()"


def steps_elsewhere(subject: Subject) -> dict[str, Any]:
    """What `described` says of the first steps in another interpreter. Raises UntriedError where
    another process cannot make the method."""
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
    `steps_elsewhere`."""
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
            found = described(take_steps(SmallRuns(subject).training()))
    sys.stdout.write("\n" + json.dumps(found))


def _hash(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
