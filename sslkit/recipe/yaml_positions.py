"""YAML with positions: what a recipe file says, and where it says it.

The language is the core schema of YAML 1.2 without its surprises: `3e-4` is a number, `on` and
`yes` are text, and duplicate keys, tags, anchors, aliases and further documents are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import yaml

from sslkit.errors import RecipeError, hide_logins

Path = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 50
_MAX_VALUES = 20_000
_MAX_DIGITS = 100  # what is longer is text: no setting is, and huge integers are costly
_MAX_LINE = 2_000
SHOWN_PROBLEMS = 50
"""So many problems of a recipe are listed; of the rest the number is said."""
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


class CommandOverride(str):
    """An override that a command makes of another option; messages name that option."""

    option: str

    def __new__(cls, override: str, option: str) -> Self:
        """override: `PATH=VALUE`. option: as it was given, such as `--protocol knn`."""
        made = super().__new__(cls, override)
        made.option = option
        return made


@dataclass(frozen=True, order=True)
class Mark:
    """A place in the file, or the override that put a value there."""

    override: str = ""
    line: int = 0
    """From 1; 0 for an override."""
    column: int = 0


@dataclass
class SourceMap:
    """Where each key and value of a document stands."""

    source: str
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)

    def find(self, path: Path, key: bool = False) -> Mark:
        """The mark of a value (or of its key), or else of the closest block around it."""
        if key and path in self.keys:
            return self.keys[path]
        if path in self.values:
            return self.values[path]
        while path:
            path = path[:-1]
            mark = self.keys.get(path) or self.values.get(path)
            if mark:
                return mark
        return Mark(line=1, column=1)

    def forget(self, path: Path) -> None:
        """Drops what is known of a value and of everything in it."""
        for marks in (self.keys, self.values):
            for known in [known for known in marks if known[: len(path)] == path]:
                del marks[known]

    def move(self, old: Path, new: Path) -> None:
        """Keeps what is known of a value, and of everything in it, under another path."""
        for marks in (self.keys, self.values):
            for known in [known for known in marks if known[: len(old)] == old]:
                marks[(*new, *known[len(old) :])] = marks.pop(known)

    def line(self, path: Path, message: str, key: bool = False, at: Path | None = None) -> str:
        """A problem in one line: `file:line:column: path: message`, or `-o override: message`.

        key: it is about the key, not the value. at: what to give the position of, if not `path`."""
        mark = self.find(path if at is None else at, key)
        dotted = ".".join(map(str, path))
        about = f"{dotted}: " if dotted else ""
        if not mark.override:
            return one_line(f"{self.source}:{mark.line}:{mark.column}: {about}{message}")
        repeated = mark.override.partition("=")[0] == dotted
        return override_line(mark.override, f"{'' if repeated else about}{message}")


def more_problems(found: int, source: str) -> list[str]:
    """The line that stands for problems that are not listed; none where all are."""
    more = found - SHOWN_PROBLEMS
    return [f"{source}: and {more:,} more problem{'s' if more > 1 else ''}"] if more > 0 else []


def one_line(text: str) -> str:
    """The text with line breaks and control characters written as escapes, cut where it is long."""
    text = text if len(text) <= _MAX_LINE else f"{text[: _MAX_LINE - 3]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def override_line(override: str, message: str) -> str:
    """A problem of an override in one line."""
    if isinstance(override, CommandOverride):
        return one_line(f"{override.option}: {message}")
    shown = hide_logins(override)
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    return one_line(f"-o {shown}: {message}")


@dataclass
class Document:
    """The content of a recipe file: dicts with text keys, lists and scalars."""

    tree: dict[str, Any]
    marks: SourceMap


def parse_document(text: str, source: str) -> Document:
    """Reads a recipe. source: what to call it in messages. Raises RecipeError."""
    reader = _Reader(text, SourceMap(source))
    tree = reader.read()
    if not reader.problems and tree is None:
        reader.problems.append(f"{source}: is empty; a recipe starts with 'name: ...'")
    elif not reader.problems and not isinstance(tree, dict):
        reader.problems.append(
            f"{source}:1:1: expected fields such as 'name: ...', got {describe(tree)}"
        )
    if found := reader.problems:
        raise RecipeError(*found[:SHOWN_PROBLEMS], *more_problems(len(found), source))
    return Document(tree, reader.marks)


def parse_value(text: str) -> Any:
    """The value of an override: a scalar or a flow collection. Raises ValueError."""
    if "\n" in text:
        raise ValueError("a value is one line")
    reader = _Reader(text, SourceMap(""))
    value = reader.read()
    if reader.problems:
        raise ValueError(f"{reader.problems[0]}; put text with special characters in quotes")
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        raise ValueError(f"write a block as {{{text}}}, or text in quotes")
    if isinstance(value, list) and not text.lstrip().startswith("["):
        raise ValueError("write a list as [a, b], or text in quotes")
    return value


def resolve_scalar(text: str) -> Any:
    """The value of a plain scalar: null, a boolean, a number, or else its text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text, 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    match = _INFINITE.fullmatch(text)
    return float(f"{match[1]}inf") if match else text


def describe(value: Any) -> str:
    """A value as a message shows it: text in quotes, long ones cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a block of fields" if value else "an empty block"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    shown = hide_logins(repr(value))
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"the text {shown}" if isinstance(value, str) else shown


class _Reader:
    """Builds the tree from the events of the parser. It works on events, not on yaml.compose,
    because these tell explicit tags, anchors and aliases apart before anything is expanded."""

    def __init__(self, text: str, marks: SourceMap) -> None:
        self.text = text
        self.marks = marks
        self.problems: list[str] = []
        self.values = 0

    def read(self) -> Any:
        """The document; None where it is empty. Problems are in `problems`."""
        tree = None
        documents = 0
        try:
            events = yaml.parse(self.text, Loader=_Loader)
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._problem(event, (), "a second document; a recipe is one document")
                        break
                    tree = self._node(next(events), events, ())
        except yaml.YAMLError as error:
            self.problems.append(self._syntax_problem(error))
        except _UnreadableError as error:
            self._problem(error.event, error.path, error.message)
        return tree

    def _node(self, event: Any, events: Iterator[Any], path: Path) -> Any:
        if len(path) > _MAX_DEPTH:
            raise _UnreadableError(event, (), f"nested more than {_MAX_DEPTH} levels deep")
        self.values += 1
        if self.values > _MAX_VALUES:
            raise _UnreadableError(
                event, (), f"more than {_MAX_VALUES:,} values; no recipe has so many"
            )
        if path not in self.marks.values:
            self.marks.values[path] = self._mark(event)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, path, f"the alias '*{event.anchor}'")
            return None
        if event.anchor is not None:
            self._refuse(event, path, f"the anchor '&{event.anchor}'")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(event, path, f"the tag '{tag}'")
        if isinstance(event, yaml.ScalarEvent):
            return resolve_scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path)
        return self._mapping(events, path)

    def _sequence(self, events: Iterator[Any], path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Any], path: Path) -> dict[str, Any]:
        block: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _UnreadableError(
                    event, path, "a key must be text; quote it if it holds { [ *"
                )
            if event.anchor is not None or event.tag is not None:
                self._refuse(event, path, "an anchor or a tag on a key")
            key, here = event.value, (*path, event.value)
            mark = self._mark(event)
            if key == "<<" and event.implicit[0]:
                self._refuse(event, path, "the merge key '<<'")
            if key in block:
                first = self.marks.keys[here]
                message = f"duplicate key, first given at {first.line}:{first.column}"
                self._problem(event, here, message)
            self.marks.keys.setdefault(here, mark)
            block.setdefault(key, self._node(next(events), events, here))
        return block

    def _mark(self, event: Any) -> Mark:
        return Mark("", event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, event: Any, path: Path, what: str) -> None:
        self._problem(event, path, f"{what} is not supported: write the value out in full")

    def _problem(self, event: Any, path: Path, message: str) -> None:
        mark = self._mark(event)
        dotted = ".".join(map(str, path))
        about = f"{dotted}: " if dotted else ""
        where = f"{self.marks.source}:{mark.line}:{mark.column}: " if self.marks.source else ""
        self.problems.append(one_line(f"{where}{about}{message}"))

    def _syntax_problem(self, error: yaml.YAMLError) -> str:
        source = self.marks.source
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            line, column = error.problem_mark.line, error.problem_mark.column
            parts = filter(None, (error.context, error.problem))
            message = f"not valid YAML: {', '.join(parts)}"
            lines = self.text.splitlines()
            around = lines[line] if line < len(lines) else ""
            if error.problem and error.problem.startswith("mapping values"):
                message += "; check the indentation, and quote text that holds a colon"
            if "\t" in around[: len(around) - len(around.lstrip())]:
                message = "not valid YAML: a tab; indent with spaces"
            return f"{source}:{line + 1}:{column + 1}: {message}" if source else message
        message = " ".join(str(error).split())
        return f"{source}: not valid YAML: {message}" if source else f"not valid YAML: {message}"


class _UnreadableError(Exception):
    """What ends the reading of a document."""

    def __init__(self, event: Any, path: Path, message: str) -> None:
        super().__init__(message)
        self.event = event
        self.path = path
        self.message = message


class _Dumper(yaml.SafeDumper):
    """Quotes all text that `resolve_scalar` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_document(tree: dict[str, Any]) -> str:
    """YAML that `parse_document` reads back to the same tree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
