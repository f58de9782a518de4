"""What is wrong with a recipe, in lines that say where, what was given and what is valid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sslkit.api import DataSource, Evaluator, Loss, Method, RunFacts, Slot
from sslkit.api.schedules import EXPECTED
from sslkit.host.plugin_errors import describe_failure
from sslkit.host.registry import Registry, did_you_mean

from .fields import Place
from .foreign import VALUES
from .model import Recipe, components, components_with_facts
from .unknown import UnknownFields, block_at, other_names
from .yaml_positions import SHOWN_PROBLEMS, Document, Path, SourceMap, describe, more_problems

_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "a block of fields",
    "dict_type": "a block of fields",
    "tuple_type": "a list",
    "list_type": "a list",
    "scheduled_number": EXPECTED,
}
"""pydantic's type of error -> what it expected."""
_BOUNDS = {
    "greater_than": "a number above",
    "greater_than_equal": "at least",
    "less_than": "a number below",
    "less_than_equal": "at most",
}

_LABELS = "take data with labels, such as class folders, or"


# --- Problems that validation finds ---------------------------------------------------------------


def validation_problems(
    error: ValidationError | None, document: Document, registry: Registry
) -> list[str]:
    """One line per problem, in the order of the file. error: what pydantic found; values that it
    would convert (`"0.5"` or `true` to a number, `on` to a boolean) are problems too."""
    root = Place(Recipe, document.tree, registry)
    conversions = dict(_conversions(root, ()))
    if error is None and not conversions:
        return []
    grouped: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False) if error else ():
        grouped.setdefault(_path(details, root), []).append(details)
    misspelt, around = _misspelt(grouped, root), {path[:-2] for path in grouped}
    found = []
    for path in {**conversions, **grouped}:
        kinds = {details["type"] for details in grouped.get(path, ())}
        # A misspelt field is reported once, not also as missing under its right name; a list whose
        # items are wrong, not also as empty.
        again = ("missing" in kinds and path in misspelt) or (
            "too_short" in kinds and path in around
        )
        if path in conversions or not again:
            at = (*path, "name") if "component" in kinds else path  # an unknown name is marked
            on_key = "extra_forbidden" in kinds
            found.append((document.marks.find(at, on_key), path, at, on_key))
    lines, unknown = [], UnknownFields(root)
    for _, path, at, on_key in sorted(found, key=lambda each: each[0])[:SHOWN_PROBLEMS]:
        message = conversions.get(path) or _message(path, grouped[path], root, unknown)
        lines.append(document.marks.line(path, message, key=on_key, at=at))
    return lines + more_problems(len(found), document.marks.source)


def _conversions(place: Place, path: Path) -> Iterator[tuple[Path, str]]:
    """(path, message) of every scalar that only a conversion would make fit."""
    value = place.value
    keys: Iterable[str | int] = value if isinstance(value, Mapping) else range(len(value))
    for key in keys:
        child = place.child(key)
        if child is None or child.value is None:
            continue
        if isinstance(child.value, (Mapping, list)):
            yield from _conversions(child, (*path, key))
        elif (expected := child.refused()) is not None:
            message = f"expected {expected}, got {describe(child.value)}"
            yield (*path, key), message + _hint(expected, child.value)


def _path(details: ErrorDetails, root: Place) -> Path:
    """The path of an error, without the parts that pydantic adds for the members of unions.

    A validator of a whole block may begin its message with `field: `, which is then the path."""
    path, block = _known_part(details["loc"], root)
    field, colon, message = details["msg"].removeprefix("Value error, ").partition(": ")
    if details["type"] == "value_error" and colon and " " not in field:
        parts = [int(part) if part.isdecimal() else part for part in field.split(".")]
        inside, _ = _known_part(tuple(parts), block)
        if len(inside) == len(parts):
            details["msg"] = message
            return path + inside
    return path


def _known_part(location: tuple[str | int, ...], root: Place) -> tuple[Path, Place]:
    """The parts of a location that are fields, and the place that they lead to."""
    path: Path = ()
    place = root
    for part in location:
        child = place.child(part)
        given = place.given(part)
        if child is None and given is not None:
            child = Place(Any, given[0], root.registry)
        if child is not None:
            place = child
            path = (*path, part)
    return path, place


def _misspelt(grouped: Mapping[Path, list[ErrorDetails]], root: Place) -> set[Path]:
    """The missing fields that an unknown field of the same block is another name of."""
    missing = [path for path, group in grouped.items() if group[0]["type"] == "missing"]
    blocks: dict[Path, list[str]] = {path[:-1]: [] for path in missing}
    for path, group in grouped.items():
        given = blocks.get(path[:-1])
        if (
            group[0]["type"] == "extra_forbidden"
            and given is not None
            and len(given) < SHOWN_PROBLEMS
        ):
            given.append(str(path[-1]))
    return {
        (*block, key)
        for block, given in blocks.items()
        for name in given
        for key in other_names(name, block_at(root, block).keys() or ())
    }


def _message(path: Path, group: list[ErrorDetails], root: Place, unknown: UnknownFields) -> str:
    """What the errors of one place say together."""
    if group[0]["type"] == "extra_forbidden":
        return unknown.explain(path)
    if group[0]["type"] == "missing":
        return _missing_field(path, root)
    expected = list(dict.fromkeys(filter(None, map(_expectation, group))))
    messages = [_plain_message(details) for details in group if _expectation(details) is None]
    if expected:
        given = describe(group[0]["input"])
        messages.insert(0, f"expected {' or '.join(expected)}, got {given}")
    return "; ".join(dict.fromkeys(messages))


def _expectation(details: ErrorDetails) -> str | None:
    """What was expected; None where pydantic's own message is better."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    return _EXPECTED.get(kind)


def _plain_message(details: ErrorDetails) -> str:
    if details["type"] in ("component", "component_block"):
        return details["msg"]
    message = " ".join(details["msg"].removeprefix("Value error, ").split())
    message = message.removeprefix("Assertion failed, ").replace("Input should", "should")
    if isinstance(details["input"], (Mapping, list)):
        return message
    return f"{message}, got {describe(details['input'])}"


def _hint(expected: str, given: Any) -> str:
    """How to write what was probably meant."""
    meant = VALUES.get(str(given).lower())
    if meant and f"'{meant}'" in expected:
        return f": write {meant}"
    if not isinstance(given, str):
        return ": put it in quotes" if expected == "text" else ""
    if "true or false" in expected and given.lower() in ("on", "yes", "y"):
        return ": write true"
    if "true or false" in expected and given.lower() in ("off", "no", "n"):
        return ": write false"
    if "number" in expected and _is_number(given):
        return ": write it without quotes and underscores"
    return did_you_mean(given, re.findall(r"'([^']*)'", expected))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _missing_field(path: Path, root: Place) -> str:
    place = block_at(root, path)
    doc = " ".join(place.doc.split()).partition(". ")[0].rstrip(".")
    message = f"is required ({doc})" if doc else "is required"
    kind = place.kind()
    if kind is not None:
        return f"{message}: {{name: ...}} with one of {', '.join(root.registry.names(kind))}"
    return message


_MEASURED = ("data", "augmentation", "backbone", "evaluate")
"""Blocks that the measurement of an encoder depends on."""


# --- Problems that only the data shows ------------------------------------------------------------


def check_recipe(
    recipe: Recipe, facts: RunFacts, *, training: bool = True, data: bool = True
) -> list[str]:
    """Every reason why this recipe cannot run on this data, in one line each; empty if it can.

    training: False leaves out what only training works with. data: False leaves out sources of
    data, and what has one of its own."""
    marks = recipe.marks or SourceMap(recipe.name)
    lines = []
    for dotted, slot, known in components_with_facts(recipe, facts):
        path: Path = tuple(int(p) if p.isdecimal() else p for p in dotted.split("."))
        if (not training and path[0] not in _MEASURED) or (not data and _opens_data(slot)):
            continue
        if not (path[0] == "method" and len(path) > 1 and recipe.method.cls.requires_labels):
            missing = _missing_labels(
                slot.cls, slot.name, known
            )  # the method says it for its parts
            lines += [_line(recipe, marks, path, message) for message in missing]
        try:
            found = [*slot.cls.problems(slot.config, known), *_missing_baselines(slot)]
        except Exception as error:
            reason = describe_failure(error, slot.cls.__module__)
            message = f"the check of {slot.cls.kind} '{slot.name}' failed: {reason}"
            lines.append(_line(recipe, marks, path, message))
            continue
        for inside, message in found:
            parts = tuple(int(p) if p.isdecimal() else p for p in inside.split(".") if p)
            lines.append(_line(recipe, marks, (*path, *parts), message))
    return lines


def _opens_data(slot: Slot[Any]) -> bool:
    inside = (found for _, found in components(slot.config))
    return any(issubclass(each.cls, DataSource) for each in (slot, *inside))


def _line(recipe: Recipe, marks: SourceMap, path: Path, message: str) -> str:
    if recipe.marks is not None:
        return marks.line(path, message)
    return f"{'.'.join(map(str, path))}: {message}"


def _missing_baselines(slot: Slot[Any]) -> Iterator[tuple[str, str]]:
    asked = getattr(slot.config, "baselines", None) if issubclass(slot.cls, Evaluator) else None
    if not asked:
        return
    there = {name for part in slot.build().parts() for name in part.baselines}
    for name in asked:
        if name not in there:
            valid = ", ".join(sorted(there)) or "only []"
            yield "baselines", f"'{slot.name}' has no baseline {name}; valid: {valid}"


def _missing_labels(cls: type[Any], name: str, facts: RunFacts) -> Iterator[str]:
    if facts.num_classes is not None:
        return
    if issubclass(cls, Method) and cls.requires_labels:
        yield f"method '{name}' needs labels, and the data has none; {_LABELS} another method"
    if issubclass(cls, Loss) and "labels" in cls.requires:
        yield f"loss '{name}' needs labels, and the data has none; {_LABELS} another loss"
