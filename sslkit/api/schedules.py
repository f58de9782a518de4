"""Numbers that change over a run, as pure functions of where it stands.

A field of a component that may change is a `ScheduledNumber`, and has two forms in a recipe:

    teacher_momentum: 0.99                                      # a constant
    teacher_momentum: {name: cosine, start: 0.996, end: 1.0}    # any schedule, with its fields

    class Config(ComponentConfig):
        teacher_momentum: Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)] = scheduled(0.99)

A method reads it where it knows the progress: `config.teacher_momentum.at(progress)`. The learning
rate alone is in two parts, its peak (`optimizer.lr`) and its factor (`schedule`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import (
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    core_schema,
)

from sslkit.errors import PluginError

from .component import Component, RunFacts, Slot, resolve_block
from .plain_number import PlainNumber

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

_POINTS = 200
"""Steps of a run at which the values of a schedule are looked at before it begins."""
_ROUNDING = 1e-9
"""By which a value between two permitted ones may leave the bounds."""


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` optimiser steps are done."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return self.step / self.steps_per_epoch

    @property
    def epochs_done(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    def next(self) -> Progress:
        """One step later."""
        return replace(self, step=self.step + 1)

    def previous(self) -> Progress:
        """One step earlier: in `Method.after_step`, the progress that the step was taken at."""
        return replace(self, step=self.step - 1)

    @property
    def fraction(self) -> float:
        """Part of training that is done, 0 to 1."""
        return self.step / self.total_steps


class Schedule(Component, ABC):
    """The course of a number over the run, as a factor: of the peak, for the learning rate; for any
    other number 1 stands for its `start` and 0 for its `end`.

    Constructed as `cls(config)`, as often as a recipe names it."""

    kind = "schedule"

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The factor in the step that follows `progress.step` finished ones: finite, not negative.

        A function of its config and `progress` alone: it is asked for any step, in any order and
        any number of times, from any thread, also before the run and after a resume."""


def checked_factor(schedule: Schedule, progress: Progress) -> float:
    """The schedule's factor. Raises PluginError where it is no factor."""
    factor = schedule.factor(progress)
    if not isinstance(factor, (int, float)) or not 0.0 <= factor < math.inf:
        raise PluginError(
            f"schedule: {type(schedule).__name__}.factor gave {factor!r} after {progress.step} of "
            f"{progress.total_steps} steps; valid is a finite number that is not negative"
        )
    return factor


def sampled_steps(facts: RunFacts) -> list[Progress]:
    """Points of the run at which to look at a schedule, first and last step included."""
    last = max(facts.total_steps - 1, 0)
    steps = sorted({round(last * i / _POINTS) for i in range(_POINTS + 1)})
    return [Progress(step, facts.total_steps, facts.steps_per_epoch) for step in steps]


@dataclass(frozen=True)
class Bounds:
    """What a `ScheduledNumber` may be, at every step: `Annotated[ScheduledNumber, Bounds(ge=0)]`.
    ge and le include the bound, gt excludes it."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def broken(self, value: float) -> tuple[str, str, float] | None:
        """(pydantic's type of error, key of its context, bound) where the value is outside."""
        if self.ge is not None and value < self.ge:
            return "greater_than_equal", "ge", self.ge
        if self.gt is not None and value <= self.gt:
            return "greater_than", "gt", self.gt
        if self.le is not None and value > self.le:
            return "less_than_equal", "le", self.le
        return None

    def within_rounding(self, value: float) -> float:
        """A value that rounding may have brought over a bound, put back on it."""
        for bound, beyond in ((self.ge, -1.0), (self.le, 1.0)):
            if bound is not None and 0.0 < (value - bound) * beyond <= _ROUNDING:
                return bound
        return value

    def __str__(self) -> str:
        words = [(self.ge, "at least"), (self.gt, "above"), (self.le, "at most")]
        return " and ".join(f"{word} {bound:g}" for bound, word in words if bound is not None)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        if source is not ScheduledNumber:
            raise PluginError(
                f"Bounds is for a ScheduledNumber, and stands at {source!r}: write Field(ge=..., "
                "le=...) of pydantic there"
            )
        return core_schema.no_info_after_validator_function(self._bounded, handler(source))

    def _bounded(self, number: ScheduledNumber) -> ScheduledNumber:
        for name, value in (("start", number.start), ("end", number.end)):
            if (found := self.broken(value)) is None:
                continue
            if number.schedule is None:
                kind: Any = found[0]
                raise PydanticKnownError(kind, {found[1]: found[2]})
            raise ValueError(f"{name}: expected {self}, got {value:g}")
        bounded = ScheduledNumber(number.start, number.end, number.schedule, self)
        bounded._place = number._place
        return bounded

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        limits = {"minimum": self.ge, "exclusiveMinimum": self.gt, "maximum": self.le}
        number, *others = found["anyOf"]
        number = {**number, **{key: value for key, value in limits.items() if value is not None}}
        return {"anyOf": [number, *others]}


class _Ends(BaseModel):
    """The fields of a scheduled number that are not the schedule's."""

    model_config = ConfigDict(allow_inf_nan=False)
    start: float
    end: float


class ScheduledNumber(PlainNumber):
    """A number of a recipe that may change over the run: `at(progress)` is its value.

    It runs from `start`, where the factor of its schedule is 1, to `end`, where it is 0. Immutable,
    and pure in the step: it may be read from any thread, for any step."""

    def __init__(
        self,
        start: float,
        end: float | None = None,
        schedule: Slot[Schedule] | None = None,
        bounds: Bounds = Bounds(),
    ) -> None:
        """end and schedule: of a number that changes; without them it is the constant `start`."""
        self.start = start
        self.end = start if end is None else end
        self.schedule = schedule
        self.bounds = bounds
        self._course = schedule.build() if schedule is not None else None

    @property
    def is_constant(self) -> bool:
        """Whether the recipe gives a plain number."""
        return self._course is None

    def at(self, progress: Progress | None) -> float:
        """The value in the step that follows `progress.step` finished ones. None: outside a run,
        for a constant alone.

        Raises PluginError where the schedule gives what the field does not permit, and where a
        number that changes is asked for without progress."""
        if self._course is None:
            return self.start
        if progress is None:
            raise PluginError(
                f"{self._place or 'a number'} follows the schedule '{self._name}', and whoever "
                "reads it was not told the step; a method tells its loss by LossInput(..., "
                "progress=progress)"
            )
        factor = checked_factor(self._course, progress)
        value = self.end - (self.end - self.start) * factor
        value = self.bounds.within_rounding(value)
        if self.bounds.broken(value):
            raise PluginError(
                f"{self._place or 'schedule'}: '{self._name}' comes to {value:g} after "
                f"{progress.step} of "
                f"{progress.total_steps} steps, between {self.start:g} and {self.end:g}; valid "
                f"here is {self.bounds}"
            )
        return value

    def values(self, facts: RunFacts) -> list[float]:
        """The values over the run, at up to 201 steps. Raises as `at` does."""
        if self.is_constant:
            return [self.start]
        return [self.at(progress) for progress in sampled_steps(facts)]

    def dump(self) -> float | dict[str, Any]:
        """As it would stand in a recipe, every default written out."""
        if self.schedule is None:
            return self.start
        name, *fields = self.schedule.dump().items()
        return dict([name, ("start", self.start), ("end", self.end), *fields])

    @property
    def _name(self) -> str:
        return self.schedule.name if self.schedule is not None else ""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ScheduledNumber):
            return self.dump() == other.dump()
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(self.start if self.is_constant else (self.start, self.end, self._name))

    def __repr__(self) -> str:
        return f"ScheduledNumber({self.dump()})"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda number: number.dump()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # `sslkit schema` replaces the second by a reference to all schedules with two ends.
        return {"anyOf": [{"type": "number"}, {"sslkit_kind": SCHEDULED}]}


SCHEDULED = "scheduled number"
"""What the schema calls the block of a number that follows a schedule."""


def _validate(value: Any, info: core_schema.ValidationInfo) -> ScheduledNumber:
    if isinstance(value, ScheduledNumber):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise PydanticKnownError("finite_number")
        return _placed(ScheduledNumber(float(value)), info)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise PydanticCustomError("scheduled_number", "expected {expected}", {"expected": EXPECTED})
    block = {key: item for key, item in value.items() if key not in ("start", "end")}
    faults: list[InitErrorDetails] = []
    ends = schedule = None
    try:
        ends = _Ends.model_validate({key: value[key] for key in ("start", "end") if key in value})
    except ValidationError as error:
        faults += _details(error)
    try:
        schedule = resolve_block("schedule", block, info.context)
    except ValidationError as error:
        faults += _details(error)
    except PydanticCustomError as error:  # there is none of this name
        faults.append({"type": error, "loc": (), "input": value})
    if ends is None or schedule is None:
        raise ValidationError.from_exception_data("ScheduledNumber", faults)
    return _placed(ScheduledNumber(ends.start, ends.end, schedule), info)


def _details(error: ValidationError) -> Iterator[InitErrorDetails]:
    """What one error says, to be said by another one."""
    for each in error.errors(include_url=False):
        kind: str | PydanticCustomError = each["type"]
        if kind not in get_args(core_schema.ErrorType):  # one of our own, or of a plugin
            kind = PydanticCustomError("reason", "{reason}", {"reason": each["msg"]})
        ctx = each.get("ctx", {})
        yield InitErrorDetails(type=kind, loc=each["loc"], input=each["input"], ctx=ctx)


def _placed(number: ScheduledNumber, info: core_schema.ValidationInfo) -> ScheduledNumber:
    """The number, which knows whose field it is: `loss 'nt_xent', temperature`."""
    component = (info.context or {}).get("component")
    number._place = ", ".join(filter(None, [component, info.field_name]))
    return number


EXPECTED = "a number or a schedule {name: ..., start: ..., end: ...}"
"""What may stand for a scheduled number, for messages."""


def scheduled(value: float | str, **fields: Any) -> Any:
    """The default of a `ScheduledNumber` field: a constant, `scheduled(0.99)`, or a schedule,
    `scheduled("cosine", start=0.996, end=1.0)`."""
    default = {"name": value, **fields} if isinstance(value, str) else float(value)
    return Field(default=default, validate_default=True)
