"""Whether a plugin fits the interface of this sslkit: what it states, and what its classes define.

A plugin may state the interface it is written for in its hook module, `sslkit_interface = 2`. One
that states another than this sslkit has is told so in one line; one that states nothing is judged
by what it uses. What still works warns, what no longer works is refused, and both name what to
write instead.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from sslkit.deprecation import (
    ENDS_WITH,
    INTERFACE_VERSION,
    OLDEST_INTERFACE,
    InterfaceWarning,
    take_old_imports,
)
from sslkit.errors import PluginError

STATEMENT = "sslkit_interface"
"""The name by which a hook module states its interface."""


@dataclass(frozen=True)
class Change:
    """A member that classes of a kind no longer define."""

    kind: str
    member: str
    instead: str
    """What to write, as it follows "write"."""
    since: int = INTERFACE_VERSION
    """The first interface without it. A plugin that states this one may use the name for itself."""
    works: bool = False
    """True: the base class still honours the old member, so that it is warned of, not refused."""


CHANGES: tuple[Change, ...] = (
    Change("backbone", "architecture", "without_weights(config)", works=True),
    Change("evaluator", "uses_features", "a subclass of ImageEvaluator or OwnDataEvaluator"),
    Change("evaluator", "own_data", "a subclass of OwnDataEvaluator"),
    Change("evaluator", "uses_train", 'splits = ("test",) where it was False'),
    Change("evaluator", "pixel_baseline", 'baselines = ("untrained",) where it was False'),
)
"""What a class written for an earlier interface may still define."""


def stated_interface(plugin: Any) -> int | None:
    """The interface that a hook module states; None where it states none. Raises PluginError for
    one that this sslkit does not have."""
    stated = getattr(plugin, STATEMENT, None)
    if stated is None:
        return None
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise PluginError(
            f"{STATEMENT} is {stated!r}, expected a number such as {INTERFACE_VERSION}"
        )
    if stated > INTERFACE_VERSION:
        raise PluginError(
            f"is written for interface {stated}, this sslkit has {INTERFACE_VERSION}: install a "
            "newer sslkit, or an older version of the plugin"
        )
    if stated < OLDEST_INTERFACE:
        raise PluginError(
            f"is written for interface {stated}, this sslkit has {OLDEST_INTERFACE} to "
            f"{INTERFACE_VERSION}: install a newer version of the plugin"
        )
    return stated


def misfit(cls: type[Any], interface: type[Any], stated: int | None) -> str | None:
    """Why a component class does not fit its interface; None where it does, also where it defines
    something old that still works. stated: the interface that its plugin states."""
    for change in _old_members(cls, interface, stated):
        if not change.works:
            gone = f"which ended with interface {change.since - 1}"
            return f"defines {change.member}, {gone}: write {change.instead}"
    return next(_other_signatures(cls, interface), None)


def warn_of_old_imports(who: str, module: str) -> None:
    """Says in one line what a plugin has imported from addresses that will end, once. who: such as
    "sslkit-waves 1.0". module: any module of the plugin."""
    by_modules: dict[tuple[str, str], list[str]] = {}
    for old, name, new, found in take_old_imports(module.partition(".")[0]):
        shown = name if name == found else f"{found} (was {name})"
        by_modules.setdefault((old, new), []).append(shown)
    if by_modules:
        imports = "; ".join(
            f"from {new} instead of {old}: {', '.join(names)}"
            for (old, new), names in by_modules.items()
        )
        _warn(who, f"import {imports}")


def warn_of_old_members(who: str, cls: type[Any], interface: type[Any], stated: int | None) -> None:
    """Says in one line what a component class defines that still works and will end."""
    writing = [f"{c.instead} instead of {c.member}" for c in _old_members(cls, interface, stated)]
    if writing:
        _warn(who, f"write {', '.join(writing)}")


def _warn(who: str, what_to_do: str) -> None:
    text = f"{who} is written for an earlier interface, which ends with {ENDS_WITH}: {what_to_do}"
    warnings.warn(text, InterfaceWarning, stacklevel=4)


def _old_members(cls: type[Any], interface: type[Any], stated: int | None) -> Iterator[Change]:
    """What a class, or a base of it outside the interface, defines under an old name."""
    own = [vars(base) for base in cls.__mro__ if base not in interface.__mro__]
    for change in CHANGES:
        known = stated is not None and stated >= change.since
        if change.kind == interface.kind and not known and any(change.member in d for d in own):
            yield change


def _other_signatures(cls: type[Any], interface: type[Any]) -> Iterator[str]:
    """Methods that cannot be called as the interface says."""
    for name, contract in _methods(interface):
        method = getattr(cls, name)
        if getattr(method, "__func__", method) is getattr(contract, "__func__", contract):
            continue
        expected = inspect.signature(contract)
        try:
            given = inspect.signature(method)
            given.bind(*(p for p in expected.parameters.values()))
        except TypeError:
            call = f"{name}({', '.join(expected.parameters)})"
            shown = f"{name}{given}" if callable(method) else f"{name} = {method!r}"
            yield f"defines {shown}, which cannot be called as {call}: write {call}"
        except ValueError:  # a callable without a signature: found out when it is called
            continue


def _methods(interface: type[Any]) -> Iterator[tuple[str, Any]]:
    """Name and function of what an interface lets a class define."""
    for base in interface.__mro__:
        if base.__module__.startswith("sslkit.api."):
            for name, member in vars(base).items():
                if isinstance(member, (FunctionType, classmethod)) and not name.startswith("_"):
                    yield name, getattr(interface, name)
