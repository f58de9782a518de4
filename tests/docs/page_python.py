"""Python of a page that is not executed: it compiles, and every name in it exists."""

from __future__ import annotations

import ast
import builtins
import importlib
import pkgutil
import typing
from collections.abc import Collection
from functools import cache

PACKAGES = ("sslkit.api", "sslkit.nn", "sslkit.evaluation")
"""Whose public names a fragment may use without an import."""
CONVENTIONS = {"torch": "torch", "nn": "torch.nn", "F": "torch.nn.functional", "np": "numpy",
               "sslkit": "sslkit"}  # fmt: skip
"""Names for modules that a fragment may use without an import."""


def unknown_names(text: str, known: Collection[str] = ()) -> list[str]:
    """What the names and the attributes of modules in a fragment do not lead to.

    known: names that earlier blocks of the page have made. Raises SyntaxError."""
    tree = ast.parse(text)
    modules, missing = _imports(tree)
    free = _used(tree) - _bound(tree) - set(known) - set(dir(builtins))
    modules |= {name: CONVENTIONS[name] for name in free & CONVENTIONS.keys()}
    missing += sorted(free - CONVENTIONS.keys() - public_names())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not _has(module, node.attr):
                missing.append(f"{module}.{node.attr}")
    return missing


def names_made(text: str) -> set[str]:
    """The names that a block leaves to the blocks after it."""
    return _bound(ast.parse(text))


@cache
def public_names() -> frozenset[str]:
    """The names that authors import from `PACKAGES`, and those of `typing` and `torch.Tensor`."""
    found = {"Path", "Tensor", *typing.__all__}
    for package in map(importlib.import_module, PACKAGES):
        found |= {name for name in vars(package) if not name.startswith("_")}
        for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            found |= {n for n in vars(importlib.import_module(each.name)) if n[0] != "_"}
    return frozenset(found)


def _imports(tree: ast.Module) -> tuple[dict[str, str], list[str]]:
    """Name -> module of `import` statements, and what cannot be imported."""
    modules: dict[str, str] = {}
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                top = alias.name.partition(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names if not _has(node.module or "", a.name)]
            missing += [f"{node.module}.{name}" for name in names]
    return modules, missing


def _has(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def _used(tree: ast.Module) -> set[str]:
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


def _bound(tree: ast.Module) -> set[str]:
    """Every name that is imported, defined, assigned or taken as an argument, in any scope."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
    return found
