"""Whether a plugin fits the interface of this sslkit: what it states, and what its classes define.

A plugin may state the interface it is written for in its hook module, `sslkit_interface = 2`. One
that states another than this sslkit has is told so in one line; one that states nothing is judged
by what it uses. What still works warns, what no longer works is refused, and both name what to
write instead.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from sslkit.deprecation import (
    ENDS_WITH,
    INTERFACE_VERSION,
    OLDEST_INTERFACE,
    InterfaceWarning,
    take_old_imports,
)
from sslkit.errors import PluginError

_NO_VALUE = object()

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
    meant_nothing: object = _NO_VALUE
    """The value that said what is so anyway: a class may keep it."""


CHANGES: tuple[Change, ...] = (
    Change("backbone", "architecture", "without_weights(config)", works=True),
    Change(
        "evaluator",
        "uses_features",
        "a subclass of ImageEvaluator or OwnDataEvaluator",
        meant_nothing=True,
    ),
    Change("evaluator", "own_data", "a subclass of OwnDataEvaluator", meant_nothing=False),
    Change("evaluator", "uses_train", 'splits = ("test",)', meant_nothing=True),
    Change("evaluator", "pixel_baseline", 'baselines = ("untrained",)', meant_nothing=True),
)
"""What a class written for an earlier interface may still define."""


INSTEAD_OF = {
    ("evaluator", "parts"): "derive from FeatureEvaluator, ImageEvaluator or OwnDataEvaluator"
}
"""(kind, abstract method) -> what to do where a class lacks it and defining it is not meant."""


def stated_interface(plugin: Any) -> int | None:
    """The interface that a hook module states; None where it states none. Raises PluginError for
    one that this sslkit does not have."""
    stated = getattr(plugin, STATEMENT, None)
    if stated is None:
        _refuse_other_spellings(plugin)
        return None
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise PluginError(
            f"{STATEMENT} is {repr(stated)[:40]}, expected a whole number such as "
            f"{INTERFACE_VERSION}"
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


def _refuse_other_spellings(plugin: Any) -> None:
    """Raises PluginError for a name of a hook module that is meant as the statement."""
    for name in vars(plugin) if isinstance(plugin, ModuleType) else ():
        if name.lower().strip("_").startswith(STATEMENT):
            raise PluginError(f"{name} is not read: write {STATEMENT} = {INTERFACE_VERSION}")


def misfit(cls: type[Any], interface: type[Any], stated: int | None) -> str | None:
    """Why a component class does not fit its interface; None where it does, also where it defines
    something old that still works. stated: the interface that its plugin states."""
    for change in _old_members(cls, interface, stated):
        if not change.works:
            gone = f"which ended with interface {change.since - 1}"
            return f"defines {change.member}, {gone}: write {change.instead}"
    found = next(_other_signatures(cls, interface), None)
    if found is None and interface.kind == "evaluator" and (stated or 1) < INTERFACE_VERSION:
        found = next(_old_inputs(cls), None)
    return found


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
        if change.kind != interface.kind or known:
            continue
        values = [members[change.member] for members in own if change.member in members]
        if any(value is not change.meant_nothing for value in values) or any(
            _sets(members.get("__init__"), change.member) for members in own
        ):
            yield change


def _sets(constructor: Any, member: str) -> bool:
    """Whether a constructor names an attribute, which it then sets."""
    return isinstance(constructor, FunctionType) and member in constructor.__code__.co_names


def _old_inputs(cls: type[Any]) -> Iterator[str]:
    """What an evaluator reads of its input that is not there, or means something else now. Found in
    the text of its `evaluate`: when it runs, the training is over."""
    from sslkit.api import FeatureEvaluator
    from sslkit.api.evaluation_inputs import NOT_OF_FEATURES

    evaluate = cls.__dict__.get("evaluate")
    if not issubclass(cls, FeatureEvaluator) or not isinstance(evaluate, FunctionType):
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(evaluate)))
    except (OSError, SyntaxError, ValueError):  # no text: found out when it is called
        return
    given = list(inspect.signature(evaluate).parameters)[1:2]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in given
            and node.attr in NOT_OF_FEATURES
        ):
            read = f"{node.value.id}.{node.attr}"
            yield f"reads {read}, which features come without: {NOT_OF_FEATURES[node.attr]}"
        if not cls.requires_labels and isinstance(node, ast.Compare) and _asks_for_labels(node):
            asked = ast.unparse(node)
            yield f"asks for {asked}, and labels are never None: write (labels >= 0).any()"


def _asks_for_labels(node: ast.Compare) -> bool:
    """Whether this is `labels is None`, `bank.test_labels is not None` and the like."""
    left, to = node.left, node.comparators[0]
    name = left.attr if isinstance(left, ast.Attribute) else getattr(left, "id", "")
    is_none = isinstance(to, ast.Constant) and to.value is None
    return is_none and isinstance(node.ops[0], ast.Is | ast.IsNot) and name.endswith("labels")


def _other_signatures(cls: type[Any], interface: type[Any]) -> Iterator[str]:
    """Methods that cannot be called as the interface says."""
    for name, contract in _methods(interface):
        expected = inspect.signature(contract)
        for method in _definitions(cls, name):
            if getattr(method, "__func__", method) is getattr(contract, "__func__", contract):
                break
            try:
                given = inspect.signature(method)
                _bind(given, expected)
            except TypeError:
                call = f"{name}({', '.join(_written(expected))})"
                shown = f"{name}{given}" if callable(method) else f"{name} = {method!r}"
                yield f"defines {shown}, which cannot be called as {call}: write {call}"
                break
            except ValueError:  # a callable without a signature: found out when it is called
                break
            kinds = [p.kind for p in given.parameters.values()]
            if inspect.Parameter.VAR_POSITIONAL not in kinds:
                break  # else it may pass on what it is given


def _bind(given: inspect.Signature, expected: inspect.Signature) -> None:
    """Raises TypeError where one function cannot be called as the other: by position, and what
    is a keyword alone by its name."""
    parameters = expected.parameters.values()
    by_name = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given.bind(*(p for p in parameters if p.kind not in (*variable, p.KEYWORD_ONLY)), **by_name)


def _written(expected: inspect.Signature) -> list[str]:
    """The names of parameters, with a star before those that are keywords alone."""
    parameters = expected.parameters.values()
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    others = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return [*others, "*", *by_name] if by_name else others


def _definitions(cls: type[Any], name: str) -> Iterator[Any]:
    """A method as the class defines it, and as each of its bases does."""
    for base in cls.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            yield found.__get__(None, cls) if hasattr(found, "__get__") else found


def _methods(interface: type[Any]) -> Iterator[tuple[str, Any]]:
    """Name and function of what an interface lets a class define."""
    for base in interface.__mro__:
        if base.__module__.startswith("sslkit.api."):
            for name, member in vars(base).items():
                if isinstance(member, (FunctionType, classmethod)) and not name.startswith("_"):
                    yield name, getattr(interface, name)
