"""What a law is: a sentence of a contract that can be tried on a component.

    class LossLaws(Laws):
        kind = "loss"

        @law("average over the batch instead of summing")
        def is_a_mean_over_the_batch(self) -> str | None:
            \"\"\"A batch that is given twice has the same loss.\"\"\"
            ...
            refuse(twice != once, f"{once:g} became {twice:g}")

A law returns nothing, or a sentence that stands beside "passed". It raises LawBrokenError where the
component breaks it, SkipTest where it has nothing to say of this component, and UntriedError where
it has, and cannot be tried. Any other exception is the component's and breaks the law too.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar
from unittest import SkipTest

from sslkit.errors import failure_of
from sslkit.host.plugin_errors import describe_failure

from .subject import Subject

Status = Literal["passed", "failed", "skipped", "untried"]
"""What came of a law: met, broken, of no meaning for the component, not to be tried here."""
_REASON = 600
"""Characters of what was seen that are shown."""


class LawBrokenError(Exception):
    """What was seen that a law forbids, in one line."""


class UntriedError(SkipTest):
    """Why a law that has something to say of a component could not be tried, and what to do."""


def refuse(broken: object, seen: str) -> None:
    """Raises LawBrokenError where a law is broken. seen: what was seen, with its numbers."""
    if broken:
        raise LawBrokenError(seen)


@dataclass(frozen=True)
class Law:
    """A law and how to try it."""

    name: str
    """What it is called: `state-is-complete`."""
    statement: str
    """The law, in a sentence."""
    remedy: str
    """How to meet it."""
    needs: tuple[str, ...]
    """Laws without which this one says nothing: where one of them is broken it is not tried."""
    slow: bool
    """Whether it takes more than about a second."""
    function: Callable[[Any], str | None]


_Tried = TypeVar("_Tried", bound=Callable[..., "str | None"])


def law(
    remedy: str, *, needs: Sequence[str] = (), slow: bool = False
) -> Callable[[_Tried], _Tried]:
    """Makes a method of `Laws` a law: its name is the method's with dashes, its statement the first
    paragraph of the docstring. remedy: how to meet it. needs: names of laws without which it says
    nothing."""

    def marked(function: _Tried) -> _Tried:
        paragraph = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
        vars(function)["law"] = Law(
            name=function.__name__.replace("_", "-"),
            statement=" ".join(paragraph.split()).rstrip("."),
            remedy=remedy,
            needs=tuple(needs),
            slow=slow,
            function=function,
        )
        return function

    return marked


class Laws:
    """The laws of a kind, and what trying them takes: made once for a component, so that laws share
    what is costly as cached properties."""

    kind: ClassVar[str]
    slow_notes: ClassVar[bool] = False
    """Whether `notes` take more than about a second."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @classmethod
    def all(cls) -> list[Law]:
        """Every law: those of the first base first, then in the order in which they are written."""
        found: dict[str, Law] = {}
        for base in reversed(cls.__mro__):
            for member in vars(base).values():
                if isinstance(declared := getattr(member, "law", None), Law):
                    found[declared.name] = declared
        return list(found.values())

    def notes(self) -> Iterator[str]:
        """Sentences for a report on what is worth measuring and cannot be broken."""
        yield from ()


@dataclass(frozen=True)
class Outcome:
    """What came of trying a law."""

    status: Status
    text: str
    """What was seen, why nothing was tried, or a sentence beside "passed"; may be empty."""
    seconds: float = 0.0
    raised: bool = False
    """Whether it ended with an exception of the component."""
    waits_for: str = ""
    """The broken law while which it says nothing."""


class Check:
    """One law on one component. Called, it raises AssertionError, of one line, where the component
    breaks the law, and unittest.SkipTest, which pytest knows, where there is nothing to try."""

    def __init__(self, tried: Law, laws: Laws, others: dict[str, Check]) -> None:
        """others: the checks of the same component, by the names of their laws."""
        self.law = tried
        self._laws = laws
        self._others = others
        self._outcome: Outcome | None = None

    def __call__(self) -> None:
        outcome = self.outcome()
        if outcome.status == "failed":
            raise AssertionError(self.line())
        if outcome.status in ("skipped", "untried"):
            raise SkipTest(outcome.text)

    def outcome(self) -> Outcome:
        """What came of it; tried once."""
        if self._outcome is None:
            start = time.perf_counter()
            found = self._try()
            self._outcome = replace(found, seconds=time.perf_counter() - start)
        return self._outcome

    def line(self) -> str:
        """The outcome of a broken law in one line: where, the law, what was seen, what to do."""
        outcome = self.outcome()
        first = "mend what raises this, and " if outcome.raised else ""
        return (
            f"{self._laws.subject}: {self.law.name}: {self.law.statement}; seen: {outcome.text}; "
            f"to meet it: {first}{self.law.remedy}"
        )

    def _try(self) -> Outcome:
        broken = next(self._broken_needs(), None)
        if broken is not None:
            text = f"says nothing while {broken} is not met"
            return Outcome("untried", text, waits_for=broken)
        try:
            with self._laws.subject.quiet():
                return Outcome("passed", self.law.function(self._laws) or "")
        except UntriedError as reason:
            return Outcome("untried", str(reason))
        except SkipTest as reason:
            return Outcome("skipped", str(reason))
        except LawBrokenError as seen:
            return Outcome("failed", " ".join(str(seen).split()))
        except Exception as error:  # the component's: whatever it raises breaks the law
            module = self._laws.subject.slot.cls.__module__
            seen_of = describe_failure(error, module) or failure_of(error, _REASON)
            return Outcome("failed", seen_of, raised=True)

    def _broken_needs(self) -> Iterator[str]:
        for name in self.law.needs:
            needed = self._others.get(name)
            if needed is not None and needed.outcome().status == "failed":
                yield name
            elif needed is not None:
                yield from needed._broken_needs()

    def __str__(self) -> str:
        return self.law.name

    def __repr__(self) -> str:
        return f"Check({self._laws.subject}, {self.law.name})"


def checks_on(laws: Laws, *, fast: bool = False) -> list[Check]:
    """The checks of a component. fast: leaves out what takes more than about a second."""
    found: dict[str, Check] = {}
    for tried in laws.all():
        if not (fast and tried.slow):
            found[tried.name] = Check(tried, laws, found)
    return list(found.values())
