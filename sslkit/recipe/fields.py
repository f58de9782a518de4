"""What a recipe may hold at a path, as far as the types and the named components tell."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, PlainValidator, WrapValidator

from sslkit.api import RenamedFrom, ScheduledNumber, Slot
from sslkit.api.renamed_fields import renamed_fields
from sslkit.api.schedules import EXPECTED
from sslkit.errors import PluginError
from sslkit.host.registry import Registry


@dataclass(frozen=True)
class Place:
    """A place in a recipe: the declared type and the raw value that stands there."""

    annotation: Any
    value: Any
    """As given, else the default in raw form; None where there is neither."""
    registry: Registry
    doc: str = ""
    """The docstring of the field."""

    @property
    def is_component(self) -> bool:
        """Whether a component block stands here."""
        return self.kind() is not None

    def kind(self) -> str | None:
        """The kind of the component that stands here; None for anything else."""
        for option in self._options():
            if get_origin(option) is Slot:
                return str(get_args(option)[0].kind)
            if option is ScheduledNumber and isinstance(self.value, Mapping):
                return "schedule"
        return None

    def model(self) -> type[BaseModel] | None:
        """The model of the block here; None where there is none or its component is unknown."""
        kind = self.kind()
        if kind is not None:
            return self._config_of(kind)
        for option in self._options():
            if isinstance(option, type) and issubclass(option, BaseModel):
                return option
        return None

    def keys(self) -> tuple[str, ...] | None:
        """The fields of the block here; None where any key, or none at all, is valid."""
        model = self.model()
        if model is None:
            return None
        names = [field.alias or name for name, field in model.model_fields.items()]
        return (*(("name",) if self.is_component else ()), *self._ends(), *names)

    def renamed(self) -> Mapping[str, tuple[str, RenamedFrom]]:
        """Old name -> name of today of the fields of the block here, and what to say of it."""
        model = self.model()
        return {} if model is None else renamed_fields(model)

    def child(self, key: str | int) -> Place | None:
        """The place below; None where the types know of none. An old name leads to its field."""
        if self.given(key) is None and (found := self.renamed().get(str(key))):
            key = found[0]
        if key in self._ends():
            return self._below(float, key, None, None)
        model = self.model()
        if model is not None:
            today = self.renamed().get(str(key), (key,))[0]
            for name, field in model.model_fields.items():
                if today == (field.alias or name):
                    annotation = Any if _converts(model, name, field) else field.annotation
                    return self._below(annotation, key, _raw(_default(field)), field)
            if key == "name" and self.is_component:
                return self._below(str, key, None, None)
            return None
        for option in self._options():
            origin, arguments = get_origin(option), get_args(option)
            if isinstance(key, int) and _is_sequence(origin) and arguments:
                fixed = origin is tuple and Ellipsis not in arguments
                if not fixed:
                    return self._below(arguments[0], key, None, None)
                if key < len(arguments):
                    return self._below(arguments[key], key, None, None)
            elif isinstance(key, str) and _is_mapping(origin) and len(arguments) == 2:
                return self._below(arguments[1], key, None, None)
        return None

    def walk(
        self, path: tuple[str | int, ...] = ()
    ) -> Iterator[tuple[tuple[str | int, ...], Place]]:
        """Every block of fields at and below this place, with its path."""
        keys = self.keys()
        if keys is not None:
            yield path, self
            below: Sequence[str | int] = keys
        elif isinstance(self.value, Mapping):
            below = list(self.value)
        else:
            below = range(len(self.value)) if isinstance(self.value, list) else ()
        for key in below:
            child = self.child(key)
            if child is not None and isinstance(child.value, (Mapping, list)):
                yield from child.walk((*path, key))

    def _below(self, annotation: Any, key: str | int, default: Any, field: Any) -> Place:
        given = self.given(key)
        doc = (field and field.description) or ""
        return Place(annotation, default if given is None else given[0], self.registry, doc)

    def given(self, key: str | int) -> tuple[Any] | None:
        """The raw value that the file gives below this place, in a tuple; None if it gives none."""
        if isinstance(self.value, Mapping) and key in self.value:
            return (self.value[key],)
        inside = isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
        return (self.value[int(key)],) if inside else None

    def refused(self) -> str | None:
        """What the types expect here where the scalar given would have to be converted to fit, as
        in `true` for a number or `"0.5"` for one; None where it fits or its validation decides."""
        expected = []
        for option in self._options():
            words, fits = _scalar_rule(option, self.value)
            if fits:
                return None
            expected.append(words)
        return " or ".join(dict.fromkeys(expected)) or None

    def _options(self) -> Iterator[Any]:
        """The members of a union, without Annotated and None."""
        pending = [self.annotation]
        while pending:
            option = pending.pop(0)
            origin = get_origin(option)
            if origin is Annotated:
                pending.insert(0, get_args(option)[0])
            elif origin in (Union, types.UnionType):
                pending[:0] = get_args(option)
            elif option is not types.NoneType:
                yield option

    def _ends(self) -> tuple[str, ...]:
        """The fields that the block of a scheduled number has beside those of its schedule."""
        ends = ScheduledNumber in self._options() and isinstance(self.value, Mapping)
        return ("start", "end") if ends else ()

    def _config_of(self, kind: str) -> type[BaseModel] | None:
        name = self.value.get("name") if isinstance(self.value, Mapping) else None
        if not isinstance(name, str):
            return None
        try:
            return self.registry.resolve(kind, name).cls.Config
        except PluginError:
            return None


def _scalar_rule(option: Any, value: Any) -> tuple[str, bool]:
    """(what a type expects, whether it takes this scalar without a conversion of its kind)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if option is ScheduledNumber:
        return EXPECTED, number
    if option is bool:
        return "true or false", isinstance(value, bool)
    if option is int:
        return "a whole number", number and (isinstance(value, int) or value.is_integer())
    if option is float:
        return "a number", number
    if option is str:
        return "text", isinstance(value, str)
    if get_origin(option) is Literal:
        choices = get_args(option)
        fits = any(value == choice and type(value) is type(choice) for choice in choices)
        return " or ".join(map(repr, choices)), fits
    return "", True


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _converts(model: type[BaseModel], name: str, field: Any) -> bool:
    """Whether a field has a validator that sees the raw value, and so may take other types."""
    early = (BeforeValidator, PlainValidator, WrapValidator)
    return any(isinstance(item, early) for item in field.metadata) or any(
        decorator.info.mode != "after" and name in decorator.info.fields
        for decorator in model.__pydantic_decorators__.field_validators.values()
    )


def _default(field: Any) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _raw(default: Any) -> Any:
    """A default in the form in which a recipe file would hold it."""
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json", exclude_unset=True)
    if isinstance(default, (Slot, ScheduledNumber)):
        return default.dump()
    if isinstance(default, Mapping):
        return {key: _raw(value) for key, value in default.items()}
    if isinstance(default, (list, tuple)):
        return [_raw(value) for value in default]
    return default
