"""An input: where it comes from, and the command that meets it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .sandbox import Outcome
from .stock import Stock

Check = Callable[[Outcome], list[str]]


@dataclass(frozen=True)
class InputId:
    """Names an input: the same id makes the same input again."""

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> InputId:
        """Of `kind:seed:number`."""
        kind, seed, number = text.split(":")
        return cls(kind, int(seed), int(number))

    def generator(self) -> random.Random:
        """The source of all chance in this input."""
        return random.Random(str(self))


@dataclass(frozen=True)
class Attempt:
    """What is run on an input, whose files lie in the folder that it runs in."""

    command: str
    """A key of `Stock.needs`: what the clean input takes."""
    arguments: list[str]
    what: str
    """What was changed, in a few words."""
    check: Check | None = None
    """Faults that only this input can have: wrong values without a word."""


Maker = Callable[[random.Random, Path, Stock], Attempt]
"""Fills the folder (which is empty) with an input, and says what is run on it."""
