"""The plugin host: finds plugins through entry points and keeps the broken ones apart.

A plugin is a module named by an entry point of the group `sslkit`. It either works as a whole or
is listed as broken with its reason; only a recipe that needs a broken plugin fails. The built-ins
come through the same entry points and hooks.

Each plugin gets a plugin manager of its own, so that no plugin can wrap, order or replace what
another one registers: installing a plugin adds names and changes nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any

import pluggy

from sslkit import __version__
from sslkit.errors import PluginError

from . import hookspecs
from .compatibility import stated_interface, warn_of_old_imports
from .plugin_errors import describe_failure
from .registry import Entry, PluginRecord, Registry, did_you_mean, normalise

GROUP = "sslkit"
BUILTIN = "sslkit.builtin"
HOOK_KINDS = {
    "register_methods": "method",
    "register_backbones": "backbone",
    "register_heads": "head",
    "register_losses": "loss",
    "register_augmentations": "augmentation",
    "register_datasets": "dataset",
    "register_evaluators": "evaluator",
    "register_optimizers": "optimizer",
    "register_schedules": "schedule",
    "register_trackers": "tracker",
    "register_callbacks": "callback",
}
"""Hook -> kind of component."""
KINDS = tuple(HOOK_KINDS.values())

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class PluginHost:
    """All installed plugins."""

    registry: Registry
    records: tuple[PluginRecord, ...]
    """The built-ins first, then by distribution and name."""


def load_plugins() -> PluginHost:
    """Imports the hook module of every installed plugin and collects what they register.

    Never raises because of a plugin. Component classes are not imported."""
    records: list[PluginRecord] = []
    entries: list[Entry] = []
    for record, entry_point in sorted(_discover(), key=_built_ins_first):
        if entry_point is None:
            records.append(record)
            continue
        record, provided = _load(record, entry_point, entries)
        records.append(record)
        entries.extend(provided)
    broken = [record for record in records if record.reason is not None]
    return PluginHost(Registry(entries, broken), tuple(records))


def _built_ins_first(found: tuple[PluginRecord, EntryPoint | None]) -> tuple[bool, str, str]:
    record, _ = found
    return not _is_builtin(record), record.distribution, record.name


def _is_builtin(record: PluginRecord) -> bool:
    return (record.distribution, record.module) == ("sslkit", BUILTIN)


# --- Discovery ------------------------------------------------------------------------------------


def _discover() -> Iterator[tuple[PluginRecord, EntryPoint | None]]:
    """Every entry point of the group; None in its place where the metadata cannot be read."""
    builtin_installed = False
    for distribution, entry_point in _scan():
        name, version = _identity(distribution)
        if isinstance(entry_point, str):
            record = PluginRecord("?", name, version, "?", reason=entry_point)
            yield record, None
            continue
        record = PluginRecord(entry_point.name, name, version, entry_point.value)
        builtin_installed |= _is_builtin(record)
        yield record, entry_point
    if not builtin_installed:  # a source tree on PYTHONPATH has no metadata
        yield (
            PluginRecord("builtin", "sslkit", __version__, BUILTIN),
            EntryPoint("builtin", BUILTIN, GROUP),
        )


def installed_modules() -> list[tuple[str, str]]:
    """(distribution, hook module) of every installed plugin, without importing any."""
    return sorted(
        (record.distribution, entry_point.module)
        for record, entry_point in _discover()
        if entry_point is not None
    )


def _scan() -> Iterator[tuple[Distribution | None, EntryPoint | str]]:
    """(distribution, entry point, or the reason why its metadata cannot be read)."""
    try:
        found = tuple(entry_points(group=GROUP))
    except Exception:  # one malformed entry_points.txt spoils the fast way for all
        yield from _scan_one_by_one()
        return
    for entry_point in found:
        yield entry_point.dist, entry_point


def _scan_one_by_one() -> Iterator[tuple[Distribution | None, EntryPoint | str]]:
    seen: set[str] = set()
    for distribution in distributions():
        name, _ = _identity(distribution)
        if name in seen:  # shadowed by an earlier entry of sys.path
            continue
        seen.add(name)
        try:
            found = tuple(distribution.entry_points.select(group=GROUP))
        except Exception as error:
            if _mentions_group(distribution):
                yield distribution, f"entry_points.txt: {describe_failure(error, name)}"
            continue
        for entry_point in found:
            yield distribution, entry_point


def _mentions_group(distribution: Distribution) -> bool:
    """Whether an entry_points.txt that cannot be parsed is meant for us."""
    try:
        text = distribution.read_text("entry_points.txt")
    except (OSError, ValueError):
        return False
    return f"[{GROUP}]" in (text or "")


def _identity(distribution: Distribution | None) -> tuple[str, str]:
    """Normalised name and version; "unknown" for what the metadata lacks."""
    if distribution is None:
        return "unknown", "unknown"
    try:
        metadata = distribution.metadata
        name, version = metadata["Name"], metadata["Version"]
    except Exception:  # METADATA is missing, unreadable or lacks the field, by Python version
        return "unknown", "unknown"
    return normalise(name or "unknown"), version or "unknown"


def components_named(registry: Registry, name: str) -> list[tuple[str, str]]:
    """(kind, name in a recipe) of what `mine`, `loss:mine` or `sslkit-mine:mine` stands for: one
    for each kind that has it. Raises PluginError where none has."""
    kind, _, bare = name.partition(":")
    if bare and kind in KINDS:
        registry.find(kind, bare)
        return [(kind, bare)]
    found = [(kind, name) for kind in KINDS if _provides(registry, kind, name)]
    if found:
        return found
    for kind in KINDS:
        if registry.broken_provider(kind, name) is not None:
            registry.find(kind, name)  # raises, with the reason
    everything = sorted({n for kind in KINDS for n in registry.names(kind)})
    guess = did_you_mean(name, everything)
    raise PluginError(
        f"'{name}': no such component{guess or '.'} Installed: {', '.join(everything)}. "
        "See: sslkit plugins list"
    )


def _provides(registry: Registry, kind: str, name: str) -> bool:
    plain = name.rpartition(":")[2]
    if plain not in {entry.name for entry in registry.entries(kind)}:
        return False
    try:
        registry.find(kind, name)
    except PluginError:
        return registry.is_ambiguous(kind, name)  # whoever resolves it says what to choose
    return True


# --- Loading one plugin ---------------------------------------------------------------------------


def _load(
    record: PluginRecord, entry_point: EntryPoint, earlier: Sequence[Entry]
) -> tuple[PluginRecord, list[Entry]]:
    """The record of a plugin, completed, and its entries (none if it is broken).

    earlier: the entries of the plugins before it, the built-ins first."""
    entries: list[Entry] = []
    try:
        # What a plugin prints while it is imported must not mix with our output (`--json`).
        with contextlib.redirect_stdout(sys.stderr):
            plugin = entry_point.load()
            try:
                for kind, name, target in _registrations(plugin):
                    entry = Entry(kind, name, target, record.distribution, record.version)
                    entries.append(entry)
            finally:  # a hook that is not known here may be one of a later interface
                stated = stated_interface(plugin)
            entries = [replace(entry, interface=stated) for entry in entries]
        _refuse_taken_names(entries, earlier)
        reason = None
    except PluginError as error:
        reason = str(error)
    except (Exception, SystemExit) as error:
        reason = describe_failure(error, entry_point.module)
    warn_of_old_imports(f"{record.distribution} {record.version}", entry_point.module)
    components: dict[str, tuple[str, ...]] = {}
    for kind in KINDS:
        names = sorted({entry.name for entry in entries if entry.kind == kind})
        if names:
            components[kind] = tuple(names)
    return replace(record, reason=reason, components=components), [] if reason else entries


def _refuse_taken_names(entries: Sequence[Entry], earlier: Sequence[Entry]) -> None:
    """Built-in names are reserved, and a distribution cannot be told apart from itself."""
    own = entries[0].distribution if entries else "sslkit"
    for owner, whose in (("sslkit", "built-in"), (own, "own distribution's")):
        taken = {(entry.kind, entry.name) for entry in earlier if entry.distribution == owner}
        claimed = [entry for entry in entries if (entry.kind, entry.name) in taken]
        if claimed:
            listed = ", ".join(f"{entry.kind} '{entry.name}'" for entry in claimed)
            why = " (their names are reserved: a recipe means the same wherever it runs)"
            raise PluginError(
                f"claims the {whose} {listed}{why if owner == 'sslkit' else ''}: register it under "
                "another name"
            )


def _registrations(plugin: Any) -> Iterator[tuple[str, str, str]]:
    """(kind, name, "module:Class") of everything that a plugin registers.

    Raises PluginError for a plugin that breaks the rules of the hooks, at the end where possible,
    so that the names of a broken plugin are known."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"a hook has the wrong signature: {_first_line(error)}") from error
    faults = list(_unmarked_hooks(plugin))
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        kind = HOOK_KINDS.get(caller.name)
        for implementation in caller.get_hookimpls():
            where = _location(implementation.function)
            if kind is None:
                if not implementation.optionalhook:
                    guess = did_you_mean(caller.name, HOOK_KINDS)
                    faults.append(f"unknown hook '{caller.name}'{guess} ({where})")
            elif implementation.hookwrapper or implementation.wrapper:
                faults.append(f"{caller.name} is a hook wrapper, which is not allowed ({where})")
            else:
                returned = implementation.function()
                for name, target, fault in _checked(returned):
                    if fault:
                        faults.append(f"{caller.name} {fault} ({where})")
                    else:
                        yield kind, name, target
    if not callers and not faults:
        faults.append(
            f"registers nothing: no function is marked with @sslkit.hookimpl. Hooks: "
            f"{', '.join(HOOK_KINDS)}"
        )
    if faults:
        raise PluginError("; ".join(faults))


def _checked(returned: Any) -> Iterator[tuple[str, str, str | None]]:
    """(name, target, fault or None) of what a hook returned."""
    if not isinstance(returned, Mapping):
        what = type(returned).__name__
        yield "", "", f'returned {what}, expected a mapping of a name to "module:Class"'
        return
    for name, target in returned.items():
        fault = None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            fault = f"registers the name {name!r}, expected letters, digits and any of _ - ."
        elif not isinstance(target, str):
            fault = (
                f"maps '{name}' to {target!r}, expected the text \"module:Class\" "
                "(classes are imported only when a recipe names them)"
            )
        elif not _TARGET.fullmatch(target):
            fault = f"maps '{name}' to '{target}', expected \"module:Class\""
        yield str(name), str(target), fault


def _unmarked_hooks(plugin: Any) -> Iterator[str]:
    """Functions that are named like hooks but lack the mark, which pluggy passes over silently."""
    for name, value in getattr(plugin, "__dict__", {}).items():
        ours = inspect.isfunction(value) and value.__module__ == getattr(plugin, "__name__", None)
        if ours and name in HOOK_KINDS and not hasattr(value, f"{GROUP}_impl"):
            yield f"{name} is not marked with @sslkit.hookimpl ({_location(value)})"


def _location(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _first_line(error: Exception) -> str:
    """pluggy's messages hold the plugin's representation and several lines; the last says why."""
    return str(error).strip().splitlines()[-1].strip()
