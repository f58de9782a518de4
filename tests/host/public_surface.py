"""The public surface as text, one line a name: what authors and programs may build on.

    python -m tests.host.public_surface        rewrites public_surface.txt beside this file

A line is a dotted name and what it is. Public are the modules of PUBLIC_MODULES in
`sslkit/deprecation.py`, and the single functions and classes that `docs/reference/python.md`
documents beside them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, get_origin

from pydantic import BaseModel

import sslkit
from sslkit.deprecation import INTERFACE_VERSION, PUBLIC_MODULES

REPOSITORY = Path(sslkit.__file__).parents[1]
PAGE = REPOSITORY / "docs" / "reference" / "python.md"
PINNED = Path(__file__).with_suffix(".txt")
COMMAND = "python -m tests.host.public_surface"

Surface = dict[str, str]


def surface() -> Surface:
    """Dotted name -> what it is, of everything public."""
    found = {"interface": str(INTERFACE_VERSION)}
    for name in PUBLIC_MODULES:
        module = importlib.import_module(name)
        for each in names_of(module):
            found |= described(f"{name}.{each}", getattr(module, each), module)
    for path in single_names():
        module_name, _, name = path.rpartition(".")
        module = importlib.import_module(module_name)
        found |= described(path, getattr(module, name), module)
    return found


def single_names() -> list[str]:
    """What the reference documents one by one."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\.\. auto(?:function|class):: (\S+)$", text, re.MULTILINE)
    return [path for path in found if path.rpartition(".")[0] not in PUBLIC_MODULES]


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module: `__all__`, or what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(name for name in module.__all__ if not name.startswith("__"))
    found = []
    for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return sorted(name for name in set(found) if not name.startswith("_"))


def described(path: str, value: Any, module: ModuleType) -> Surface:
    """The lines of one name."""
    if isinstance(value, type):
        return dict(_class(path, value))
    if inspect.isroutine(value):
        return {path: _signature(value)}
    if isinstance(value, tuple) and all(isinstance(each, type) for each in value):
        return {path: f"= {', '.join(each.__name__ for each in value)}"}
    if isinstance(value, int | str | float | tuple | frozenset) or get_origin(value):
        shown = repr(value).replace("typing.", "")
        return {path: f"= {re.sub(r' at 0x[0-9a-f]+', '', shown)}"[:200]}
    return {path: f"a {type(value).__name__}"}


def _class(path: str, cls: type[Any]) -> Iterator[tuple[str, str]]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    kind = "dataclass" if dataclasses.is_dataclass(cls) else "class"
    yield path, f"{kind}({bases})"
    yield from ((f"{path}.{name}", text) for name, text in _fields(cls))
    fields = {name for name, _ in _fields(cls)}
    for name, member in vars(cls).items():
        made_for_us = kind == "dataclass" or issubclass(cls, BaseModel) or Protocol in cls.__bases__
        is_constructor = name == "__init__" and not made_for_us
        if (name.startswith("_") and not is_constructor) or name in fields:
            continue
        if name in ("model_config", "model_post_init"):
            continue
        if isinstance(member, type) and member.__module__ == cls.__module__:
            yield from _class(f"{path}.{name}", member)
        else:
            text = _member(member)
            annotation = inspect.get_annotations(cls).get(name)
            yield f"{path}.{name}", text + (f": {annotation}" if annotation else "")
    for name, annotation in inspect.get_annotations(cls).items():
        if name not in vars(cls) and name not in fields and not name.startswith("_"):
            yield f"{path}.{name}", f"attribute: {annotation}"


def _fields(cls: type[Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of the fields of a dataclass or of a pydantic model, own ones alone."""
    own = inspect.get_annotations(cls)
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.name in own:
                missing = dataclasses.MISSING
                given = field.default is not missing or field.default_factory is not missing
                yield field.name, _field(own[field.name], given, field.default)
    elif issubclass(cls, BaseModel):
        for name, described in cls.model_fields.items():
            if name in own:
                default = described.get_default(call_default_factory=False)
                yield name, _field(own[name], not described.is_required(), default)


def _field(annotation: Any, has_default: bool, default: Any) -> str:
    shown = repr(default) if isinstance(default, int | float | str | tuple | None) else "..."
    return f"field: {annotation}" + (f" = {shown}" if has_default else "")


def _member(member: Any) -> str:
    abstract = "abstract " if getattr(member, "__isabstractmethod__", False) else ""
    if isinstance(member, property | cached_property):
        function = member.fget if isinstance(member, property) else member.func
        returned = inspect.get_annotations(function).get("return", "Any") if function else "Any"
        return f"{abstract}property: {returned}"
    if isinstance(member, staticmethod | classmethod):
        return f"{abstract}{type(member).__name__} {_signature(member.__func__)}"
    if inspect.isroutine(member):
        return f"{abstract}{_signature(member)}"
    plain = isinstance(member, int | float | str | tuple | frozenset | None)
    return f"attribute = {member!r}" if plain else "attribute"


def _signature(function: Any) -> str:
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        return "callable"
    signature = signature.replace("'", "") if "'" in signature else signature
    return re.sub(r" at 0x[0-9a-f]+|<function (\w+)>", r"\1", f"def {signature}")


# --- What changed ---------------------------------------------------------------------------------


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(additions, breaks), a line each. An addition is what no existing plugin or program can
    notice: a name, a parameter or field with a default, a method that nobody must define."""
    additions, breaks = [], []
    for name in sorted((before.keys() | after.keys()) - {"interface"}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if new is None:
            breaks.append(f"{name} is gone; it was: {old}")
        elif old is None:
            must = name.rpartition(".")[0] in before and _is_demanded(new)
            (breaks if must else additions).append(f"{name} is new: {new}")
        else:
            line = f"{name} was: {old}; is: {new}"
            is_more = only_more_parameters(old, new) or _gains_a_default(old, new)
            (additions if is_more else breaks).append(line)
    return additions, breaks


def _is_demanded(text: str) -> bool:
    """Whether a new member of an existing class asks something of those that there are."""
    return text.startswith("abstract") or (text.startswith("field:") and " = " not in text)


def _gains_a_default(old: str, new: str) -> bool:
    return old.startswith("field:") and " = " not in old and new.startswith(f"{old} = ")


def only_more_parameters(old: str, new: str) -> bool:
    """Whether every call of a function, and every definition that overrides it, stays right."""
    before, after = _parameters(old), _parameters(new)
    if before is None or after is None or old.partition("def ")[0] != new.partition("def ")[0]:
        return False
    kept = [each for each in after if each[1] in {name for _, name, _ in before}]
    more = [each for each in after if each not in kept]
    positional = [each for each in more if each[0] == "positional"]
    return (
        kept == before
        and old.rpartition(") -> ")[2] == new.rpartition(") -> ")[2]
        and all("=" in text for _, _, text in more)
        and (not positional or after.index(positional[0]) >= _positions(before))
    )


def _positions(parameters: list[tuple[str, str, str]]) -> int:
    return sum(kind == "positional" for kind, _, _ in parameters)


def _parameters(text: str) -> list[tuple[str, str, str]] | None:
    """(positional or keyword, name, how it is written) of each parameter; None for no function."""
    _, found, signature = text.partition("def (")
    inside = signature.rpartition(")")[0] if " -> " not in signature else signature
    inside = inside.rpartition(") -> ")[0] if " -> " in inside else inside
    if not found:
        return None
    parts, depth, start = [], 0, 0
    for at, char in enumerate(inside):
        depth += char in "([{"
        depth -= char in ")]}"
        if char == "," and depth == 0:
            parts.append(inside[start:at].strip())
            start = at + 1
    parts.append(inside[start:].strip())
    kind, result = "positional", []
    for part in filter(None, parts):
        if part.startswith("*"):
            kind = "keyword"
        result.append((kind, re.split(r"[:=]", part)[0].strip(), part))
    return result


def read() -> Surface:
    """The pinned surface."""
    lines = PINNED.read_text(encoding="utf-8").splitlines()
    return {name: text for name, _, text in (line.partition("  ") for line in lines) if text}


def advice(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What changed and what to do, for whoever changed it; empty where nothing did."""
    additions, breaks = changes(before, after)
    text = ""
    if additions:
        listed = "\n  ".join(additions)
        text += f"Additions: rewrite the pin ({COMMAND}), a line in the changelog.\n  {listed}\n"
    if breaks:
        listed = "\n  ".join(breaks)
        number = (
            "" if before.get("interface") != after.get("interface")
            else "INTERFACE_VERSION has to grow once in this release; "
        )  # fmt: skip
        text += (
            f"Breaks: {number}keep the old form with a warning where a few lines can "
            "(sslkit/deprecation.py, sslkit/host/compatibility.py), a row in "
            f"docs/howto/interfaces.md, a line under Changed, then {COMMAND}.\n  {listed}\n"
        )
    return text


def main() -> None:
    after = surface()
    text = advice(read(), after) if PINNED.exists() else ""
    PINNED.write_text("".join(f"{name}  {each}\n" for name, each in after.items()))
    sys.stdout.write(text or "nothing has changed\n")


if __name__ == "__main__":
    main()
