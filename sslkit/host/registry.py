"""(kind, name) -> class. Classes are imported when a recipe names them, not before.

A name is what a recipe writes: `nt_xent`, or `distribution:name`, which always works and is
needed where two distributions register the same name.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args, get_origin

from sslkit.errors import PluginError

from .compatibility import INSTEAD_OF, misfit, warn_of_old_imports, warn_of_old_members
from .plugin_errors import describe_failure

if TYPE_CHECKING:
    from sslkit.api import Component


@dataclass(frozen=True)
class Entry:
    """One registered name: what a hook returned, not yet imported."""

    kind: str
    name: str
    """As registered, without the distribution."""
    target: str
    """"module:Class"."""
    distribution: str
    version: str
    interface: int | None = None
    """The interface that its plugin states; see `host/compatibility.py`."""

    @property
    def qualified(self) -> str:
        """The name that no other plugin can claim."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True)
class Found:
    """A component that a name stands for."""

    cls: type[Component]
    name: str
    """As registered, without the distribution."""
    distribution: str
    version: str


@dataclass(frozen=True)
class PluginRecord:
    """One entry point: what it is, and what it provides or why it is broken."""

    name: str
    """The name of the entry point."""
    distribution: str
    """Normalised name of the distribution; "unknown" where its metadata does not say."""
    version: str
    module: str
    reason: str | None = None
    """Why it is broken, in one line; None where it works."""
    components: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """kind -> names. For a broken plugin: what it would have provided, as far as is known."""


class Registry:
    """The components of all plugins that work."""

    def __init__(self, entries: Iterable[Entry], broken: Sequence[PluginRecord] = ()) -> None:
        self._entries: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            self._entries[entry.kind, entry.name].append(entry)
        self._broken = tuple(broken)
        self._found: dict[Entry, Found] = {}

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Everything registered, or everything of a kind, sorted by name."""
        chosen = [
            entry
            for (of_kind, _), entries in self._entries.items()
            for entry in entries
            if kind in (None, of_kind)
        ]
        return tuple(sorted(chosen, key=lambda e: (e.kind, e.name, e.distribution)))

    def names(self, kind: str) -> tuple[str, ...]:
        """The names a recipe may use, sorted; `distribution:name` where the name is ambiguous."""
        return tuple(
            entry.qualified if self.is_ambiguous(kind, entry.name) else entry.name
            for entry in self.entries(kind)
        )

    def is_ambiguous(self, kind: str, name: str) -> bool:
        """Whether several distributions register this name."""
        return len(self._entries.get((kind, name), ())) > 1

    def find(self, kind: str, name: str) -> Entry:
        """The entry that a name stands for. Raises PluginError; imports nothing."""
        distribution, _, plain = name.rpartition(":")
        entries = self._entries.get((kind, plain), [])
        if distribution:
            wanted = normalise(distribution)
            entries = [entry for entry in entries if entry.distribution == wanted]
        if len(entries) == 1:
            return entries[0]
        if entries:
            providers = " and ".join(entry.distribution for entry in entries)
            choices = " or ".join(f"'{entry.qualified}'" for entry in entries)
            raise PluginError(
                f"{kind} {name!r} is ambiguous: {providers} provide it, write {choices}"
            )
        raise PluginError(self._unknown(kind, name))

    def resolve(self, kind: str, name: str) -> Found:
        """The class that a name stands for, imported and checked. Raises PluginError."""
        entry = self.find(kind, name)
        if entry not in self._found:
            cls = _import_component(entry)
            self._found[entry] = Found(cls, entry.name, entry.distribution, entry.version)
        return self._found[entry]

    def _unknown(self, kind: str, name: str) -> str:
        see = f"See: sslkit plugins list --kind {kind}"
        broken = self.broken_provider(kind, name)
        if broken is not None:
            return (
                f"{kind} {name!r} comes from the broken plugin '{broken.name}' of "
                f"{broken.distribution} {broken.version}: {broken.reason}. {see}"
            )
        distribution = name.rpartition(":")[0]
        installed = sorted({entry.distribution for entry in self.entries()})
        if distribution and normalise(distribution) not in installed:
            guess = did_you_mean(distribution, installed)
            return (
                f"unknown {kind} {name!r}: '{distribution}' provides no working plugin"
                f"{guess or '; is it installed?'} Valid: {', '.join(installed)}. "
                "See: sslkit plugins list"
            )
        names = self.names(kind)
        valid = ", ".join(names) or f"none (no plugin provides a {kind})"
        elsewhere = self._of_other_kinds(kind, name)
        guess = did_you_mean(name, names) if elsewhere is None else f": {elsewhere}."
        missing = "; no installed package provides it: is the one that does installed?"
        message = f"unknown {kind} {name!r}{guess or missing} Valid: {valid}"
        # What a plugin would have provided is not known where its module could not be imported.
        silent = [record for record in self._broken if not record.components]
        if silent:
            listed = "; ".join(f"{r.name} of {r.distribution} ({r.reason})" for r in silent)
            message += f". Broken plugins that may provide it: {listed}"
        return f"{message}. {see}"

    def broken_provider(self, kind: str, name: str) -> PluginRecord | None:
        """The broken plugin that would have provided a component, as far as is known."""
        distribution, _, plain = name.rpartition(":")
        for record in self._broken:
            ours = not distribution or record.distribution == normalise(distribution)
            if ours and plain in record.components.get(kind, ()):
                return record
        return None

    def _of_other_kinds(self, kind: str, name: str) -> str | None:
        """Where a name stands that is not one of this kind: in the wrong place of a recipe, or
        registered by the wrong hook; None where it stands nowhere."""
        distribution, _, plain = name.rpartition(":")
        found = [
            f"{entry.kind} ({entry.distribution} {entry.version})"
            for entry in self.entries()
            if entry.name == plain and distribution in ("", entry.distribution)
        ]
        found += [
            f"{other} (the broken plugin '{record.name}' of {record.distribution})"
            for record in self._broken
            for other, names in record.components.items()
            if plain in names and distribution in ("", record.distribution)
        ]
        return f"registered as {' and '.join(found)}, and not as {kind}" if found else None


def normalise(distribution: str) -> str:
    """The comparable form of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest valid name, or nothing where none is close."""
    by_folded = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(given.lower(), by_folded, n=1, cutoff=0.6)
    return f", did you mean '{by_folded[close[0]]}'?" if close else ""


def _import_component(entry: Entry) -> type[Component]:
    """Imports the class of an entry and checks that it is what its kind demands."""
    where = f"{entry.kind} '{entry.name}' of {entry.distribution} {entry.version}"
    module_name, _, attribute = entry.target.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for our own output (`--json`)
            found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        reason = describe_failure(error, module_name)
        raise PluginError(f"{where}: cannot import {entry.target}: {reason}") from error
    interface = _interface(entry.kind)
    fault = _fault(interface, found) or misfit(found, interface, entry.interface)
    if fault:
        raise PluginError(f"{where}: {entry.target} {fault}")
    warn_of_old_imports(f"{entry.distribution} {entry.version}", module_name)
    warn_of_old_members(where, found, interface, entry.interface)
    cls: type[Component] = found
    return cls


def _interface(kind: str) -> type[Component]:
    """The class that components of a kind derive from."""
    from sslkit.api import INTERFACES

    return next(interface for interface in INTERFACES if interface.kind == kind)


def _fault(interface: type[Component], found: Any) -> str | None:
    """What is wrong with an object that should be a component class; None if nothing is."""
    from sslkit.api.renamed_fields import renamed_fields

    expected = f"expected a subclass of sslkit.api.{interface.__name__}"
    if not isinstance(found, type):
        return f"is a {type(found).__name__}, {expected}"
    if not issubclass(found, interface):
        bases = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in found.__bases__)
        return f"is a class with the base {bases}, {expected}"
    if inspect.isabstract(found):
        missing = [
            name
            for name in dir(found)
            if getattr(getattr(found, name, None), "__isabstractmethod__", False)
        ]
        hints = [
            INSTEAD_OF[key] for name in missing if (key := (interface.kind, name)) in INSTEAD_OF
        ]
        what = f"does not implement {', '.join(missing)} of sslkit.api.{interface.__name__}"
        return ": ".join([what, *hints])
    config: Any = found.Config
    base = interface.Config
    if not (isinstance(config, type) and issubclass(config, base)):
        what = f"class {config.__qualname__}" if isinstance(config, type) else repr(config)
        return f"has the Config {what}, expected a subclass of sslkit.api.{base.__name__}"
    if "name" in config.model_fields:
        return "has a Config field 'name', which is the component's name in a recipe: rename it"
    try:
        renamed_fields(config)
    except PluginError as error:
        return str(error)
    for name, described in config.model_fields.items():
        if _holds_a_set(described.annotation):
            return f"has a set as Config field '{name}', whose order differs by run: use a tuple"
        if (better := _better_default(described)) is not None:
            return f"has {described.default!r} as the default of '{name}': write {better}"
    return None


def _better_default(described: Any) -> str | None:
    """What to write for the default of a field whose type is made from what a recipe says, where
    the default is not validated and would stay as it is."""
    from sslkit.api import ScheduledNumber, Slot

    if described.validate_default or described.default is None or described.is_required():
        return None
    kind, default = get_origin(described.annotation) or described.annotation, described.default
    if kind is ScheduledNumber and isinstance(default, (int, float)):
        return f"scheduled({default!r})"
    if kind is Slot and isinstance(default, Mapping):
        return "slot(...), with the name and the fields"
    return None


def _holds_a_set(annotation: Any) -> bool:
    """Whether a set is part of a type."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, AbstractSet):
        return True
    return any(_holds_a_set(part) for part in get_args(annotation))
