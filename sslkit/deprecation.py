"""Addresses that an earlier interface had. What is imported from them works until the release that
ends it, and a DeprecationWarning at the import says what to write instead.

An interface is what plugins are written for: the modules of PUBLIC_MODULES. It has a number, which
grows when something in it is renamed, removed or called in another way. Members of classes are
judged in `host/compatibility.py`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

INTERFACE_VERSION = 2
"""The interface of this sslkit."""
OLDEST_INTERFACE = 1
"""The oldest interface whose plugins still work; they are told what to change."""
ENDS_WITH = "sslkit 0.3"
"""The release that ends what is deprecated now."""

_PARTS = (
    "average_precision batch_norm chunked classification clustering color deferred ema functional "
    "image jitter lars layer_groups logistic_regression mask_transformer masked_apply masking mlp "
    "modes numerics patches positions prototypes queue recompute representation resampling "
    "retrieval segmentation shared_statistics stem stratified supervised weights"
)
PUBLIC_MODULES = (
    "sslkit",
    "sslkit.api",
    "sslkit.errors",
    *(f"sslkit.nn.{name}" for name in _PARTS.split()),
    "sslkit.parallel.collectives",
    "sslkit.parallel.world",
    "sslkit.randomness",
    "sslkit.testing",
)
"""What an author may import from; a test pins every name in it with its signature. The other
modules of `sslkit.nn` are how these work inside, and may change in any release."""

MOVED_MODULES = {
    "sslkit.evaluations": "sslkit.workflows.evaluate",
    "sslkit.export": "sslkit.workflows.export",
    "sslkit.export.exporting": "sslkit.workflows.export.export",
    "sslkit.hookspecs": "sslkit.host.hookspecs",
    "sslkit.nn.blocks": "sslkit.nn.chunked",
    "sslkit.nn.depth": "sslkit.nn.layer_groups",
    "sslkit.nn.gather": "sslkit.parallel.collectives",
    "sslkit.nn.labels": "sslkit.nn.stratified",
    "sslkit.nn.selection": "sslkit.nn.masked_apply",
    "sslkit.tracking.folder": "sslkit.runs.folder",
}
"""Public module of interface 1 -> where its content is."""

NOTHING: Mapping[str, str] = MappingProxyType({})

_used: dict[str, set[OldImport]] = {}
"""Module that imports -> what it imported."""


class InterfaceWarning(FutureWarning):
    """An installed plugin is written for an earlier interface: one line for whoever runs it. Its
    author sees a DeprecationWarning where the import stands."""


class OldImport(NamedTuple):
    """Something that was imported from an address of an earlier interface."""

    old: str
    """The module that was asked."""
    name: str
    new: str
    """The module that has it now."""
    found: str
    """Its name there."""


def take_old_imports(package: str) -> list[OldImport]:
    """What the modules of a package have imported since this was last asked."""
    modules = [name for name in _used if f"{name}.".startswith(f"{package}.")]
    return sorted(found for module in modules for found in _used.pop(module))


def warn_of_old(old: str, instead: str, *, in_class: bool = False) -> None:
    """Tells the author of a plugin what to write in place of a member that still works, at the line
    that called the function that calls this. in_class: it is called by `__init_subclass__` of an
    abstract class, behind a call of `abc`."""
    text = f"{old} ends with {ENDS_WITH}: write {instead}"
    warnings.warn(text, DeprecationWarning, stacklevel=4 if in_class else 3)


def removed_names(module: str, removed: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that had more names. removed: name -> what to write instead."""

    def __getattr__(name: str) -> Any:
        if name in removed:  # an AttributeError would lose the text in `from ... import`
            raise ImportError(f"{module}.{name} is gone: {removed[name]}")
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return __getattr__


def moved_names(
    old: str,
    new: str,
    renamed: Mapping[str, str] = NOTHING,
    removed: Mapping[str, str] = NOTHING,
) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose content has moved from `old` to `new`.

    renamed: name -> its name there. removed: name -> what to write in its place; it is refused."""

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{old}' has no attribute '{name}'")
        if (
            name in removed
        ):  # AttributeError would lose the text on the way out of `from ... import`
            raise ImportError(f"{old}.{name} is gone: {removed[name]}")
        found = renamed.get(name, name)
        try:
            value = getattr(importlib.import_module(new), found)
        except AttributeError:
            raise AttributeError(f"module '{old}' has no attribute '{name}'") from None
        importer = sys._getframe(1).f_globals.get("__name__", "")
        _used.setdefault(importer, set()).add(OldImport(old, name, new, found))
        warnings.warn(
            f"{old}.{name} is {new}.{found} now; the old address ends with {ENDS_WITH}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

    return __getattr__


class _MovedModules(MetaPathFinder, Loader):
    """Stands in for the modules of MOVED_MODULES; asked only where Python finds no such module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MOVED_MODULES:
            return None
        holds_others = any(other.startswith(f"{name}.") for other in MOVED_MODULES)
        return ModuleSpec(name, self, is_package=holds_others)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        vars(module)["__getattr__"] = moved_names(name, MOVED_MODULES[name])


def keep_moved_modules() -> None:
    """Makes the modules of MOVED_MODULES importable. Called once, by `import sslkit`."""
    sys.meta_path.append(_MovedModules())
