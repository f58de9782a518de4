"""Holds two records against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .fingerprint import SECTIONS

_MISSING = "nothing"


def environment_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Why two records cannot be judged: other processor, threads, versions or data."""
    found = []
    for part in ("format", "environment", "data"):
        one, two = _flat(a[part], part), _flat(b[part], part)
        found += [
            f"{name.removeprefix('environment.')} {one.get(name)} and {two.get(name)}"
            for name in {**one, **two}
            if one.get(name) != two.get(name)
        ]
    return found


def differences(
    a: dict[str, Any], b: dict[str, Any], only: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Experiment -> what is not the same in both records, the first of each kind; experiments that
    are the same are left out. What did not run, or ran on one side only, counts as not the same.

    only: names of experiments; all where there are none."""
    ones, twos = a["experiments"], b["experiments"]
    found: dict[str, list[str]] = {}
    for name in only or {**ones, **twos}:
        one, two = ones.get(name), twos.get(name)
        if one is None or two is None:
            sides = [side for side, it in (("first", one), ("second", two)) if it is None]
            found[name] = [f"not in the {' nor the '.join(sides)} record"]
        elif errors := [f"did not run: {it['error']}" for it in (one, two) if "error" in it]:
            found[name] = errors
        elif different := section_differences(one, two):
            found[name] = different
    return found


def section_differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The first difference of each section of two fingerprints."""
    found = []
    for section in SECTIONS:
        a, b = one[section]["values"], two[section]["values"]
        brief = not a or not b
        names = [key for key in {**a, **b} if a.get(key) != b.get(key)] if not brief else []
        if names:
            first, more = names[0], f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
            found.append(
                f"{section}: {first}: {a.get(first, _MISSING)} and {b.get(first, _MISSING)}{more}"
            )
        elif one[section]["sha256"] != two[section]["sha256"]:
            found.append(f"{section}: other bits" + " (no single values are recorded)" * brief)
    return found


def _flat(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {where: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{where}.{key}").items()}
