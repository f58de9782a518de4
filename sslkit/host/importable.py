"""Whether what a plugin registers can be imported, as far as its files tell: nothing is run.

So `sslkit plugins list` stays fast and imports no torch; `sslkit plugins check` imports."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from .plugin_errors import describe_failure


def import_fault(target: str) -> str | None:
    """Why "module:Class" cannot be imported, in one line; None where nothing speaks against it:
    the module lies where Python looks, is written in Python, imports what is installed, and its
    text makes the name."""
    module, _, attribute = target.partition(":")
    name = attribute.partition(".")[0]
    if module in sys.modules:
        loaded = vars(sys.modules[module])
        return None if name in loaded or "__getattr__" in loaded else f"{module} has no '{name}'"
    fault = _module_fault(module, set())
    if fault is not None:
        return fault
    tree = _parsed(_find(module))
    if tree is None or {name, "*", "__getattr__"} & set(_names(tree)):
        return None
    return f"{module} has no '{name}'"


def _module_fault(module: str, seen: set[str]) -> str | None:
    """Why a module cannot be imported, or one of its own package that it imports."""
    if module in seen or module in sys.modules:
        return None
    seen.add(module)
    spec = _find(module)
    if spec is None:
        return f"there is no module '{module}'"
    try:
        tree = _parsed(spec)
    except (SyntaxError, ValueError) as error:
        return describe_failure(error, module)
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    for imported, line in _imports(tree, package):
        top = imported.partition(".")[0]
        if top == module.partition(".")[0]:
            fault = _module_fault(imported, seen)
        elif top in sys.modules or _find(top) is not None:
            continue
        else:
            fault = f"imports '{top}', which is not installed ({spec.origin}:{line})"
        if fault is not None:
            return fault
    return None


def _find(module: str) -> ModuleSpec | None:
    """Where a module lies, without importing what is around it."""
    around, _, _ = module.rpartition(".")
    places: Sequence[str] | None = None
    if around in sys.modules:
        places = list(getattr(sys.modules[around], "__path__", ()))
    elif around:
        spec = _find(around)
        places = None if spec is None else spec.submodule_search_locations
        if places is None:
            return None
    try:
        for finder in sys.meta_path:
            # Not importlib.util.find_spec, which imports the packages around a module.
            found = finder.find_spec(module, places)
            if found is not None:
                return found
    except (ImportError, ValueError, AttributeError):
        return importlib.util.find_spec(module) if not around else None
    return None


def _parsed(spec: ModuleSpec | None) -> ast.Module | None:
    """A module's text; None where it has none, such as a compiled one. Raises SyntaxError, and
    ValueError where it is no text."""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    except OSError:
        return None


def _imports(tree: ast.Module | None, package: str) -> Iterator[tuple[str, int]]:
    """(module, line) of what is imported whatever happens: not below an `if` or `try`."""
    for statement in tree.body if tree is not None else ():
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name, statement.lineno
        elif isinstance(statement, ast.ImportFrom):
            parts = package.split(".")
            around = parts[: len(parts) - statement.level + 1] if statement.level else []
            if statement.module or len(around) > 1:
                yield ".".join([*around, *filter(None, [statement.module])]), statement.lineno


def _names(tree: ast.AST) -> Iterator[str]:
    """What a module may get by its text, below `if` and `try` too; "*": all of another one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        yield from _names(node)
