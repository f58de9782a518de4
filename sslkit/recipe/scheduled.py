"""The numbers of a recipe that follow a schedule, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sslkit.api import ScheduledNumber, Slot

from .model import Recipe


def scheduled_numbers(recipe: Recipe) -> dict[str, ScheduledNumber]:
    """Name -> each number that follows a schedule of its own in training, in the order of the
    recipe; evaluators, which may train by themselves, have theirs for themselves.

    The name is that of the field, `teacher_momentum`; where fields of one name meet, with as much
    of the path before it as tells them apart: `loss_temperature`."""
    training = recipe.model_copy(update={"evaluate": ()})
    found = {path: n for path, n in _numbers(training, ()) if not n.is_constant}
    return {_name(path, list(found)): number for path, number in found.items()}


def _name(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> str:
    length = 1
    while sum(other[-length:] == path[-length:] for other in paths) > 1:
        length += 1
    return "_".join(path[-length:])


def _numbers(
    value: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ScheduledNumber]]:
    if isinstance(value, ScheduledNumber):
        yield path, value
        value = value.schedule
    if isinstance(value, Slot):
        value = value.config
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _numbers(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, str(index)))
