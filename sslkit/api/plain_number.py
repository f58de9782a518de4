"""How a `ScheduledNumber` stands in for the float that it was in interface 1."""

from __future__ import annotations

import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from sslkit.deprecation import ENDS_WITH
from sslkit.errors import PluginError


class PlainNumber(ABC):
    """A constant computes and compares like its value, with a DeprecationWarning; a number that
    changes refuses, since there is no one value."""

    start: float
    _place: str = ""
    """Whose field it is, for messages."""

    @property
    @abstractmethod
    def is_constant(self) -> bool:
        """Whether there is one value."""

    def _plain(self) -> float:
        if not self.is_constant:
            field = self._place.rpartition(", ")[2]
            given = f"{self._place}: {self!r}" if field else f"{self!r}"
            read = f"config.{field}.at(progress)" if field else ".at(progress)"
            raise PluginError(
                f"{given} changes over the run and is no plain number: write {read}, and in a loss "
                "inputs.progress"
            )
        warnings.warn(
            "a number of a config may follow a schedule and is no float: write .at(progress), or "
            f".start for where it begins; plain use ends with {ENDS_WITH}",
            DeprecationWarning,
            stacklevel=3,
        )
        return self.start

    def __float__(self) -> float:
        return self._plain()

    def __bool__(self) -> bool:
        return bool(self._plain())

    def __neg__(self) -> float:
        return -self._plain()

    def __format__(self, how: str) -> str:
        return format(self._plain(), how) if how else str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, float)) and self._plain() == other

    def __hash__(self) -> int:
        return hash(self.start)


def _with(operation: Callable[[Any, Any], Any], *, turned: bool = False) -> Callable[..., Any]:
    """The method that computes with the value. turned: the number stands on the right."""

    def method(self: PlainNumber, other: Any) -> Any:
        mine = self._plain()
        theirs = other._plain() if isinstance(other, PlainNumber) else other
        return operation(theirs, mine) if turned else operation(mine, theirs)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "lt", "le", "gt", "ge"):
    setattr(PlainNumber, f"__{_name}__", _with(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(PlainNumber, f"__r{_name}__", _with(getattr(operator, _name), turned=True))
