"""Which runs a comparison consists of: recipes times variations times seeds."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sslkit.data.splits import open_splits
from sslkit.errors import RecipeError
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.recipe import (
    Recipe,
    experiment_hash,
    file_digests,
    find_recipe,
    flatten,
    load_recipe,
)
from sslkit.report.comparison.side_by_side import RunRecord
from sslkit.runs.folder import sanitise_name

from .agreement import ArmConditions
from .records import protocol_settings

_OPENING, _CLOSING, _QUOTES = "{[", "}]", "\"'"
_MAX_NAME = 100
_SHOWN_DIFFERENCES = 3

Identity = tuple[str, str]
"""Recipe name and hash: runs of one arm share both, and differ in their seed."""


@dataclass(frozen=True)
class PlannedArm:
    """An experiment to be run with several seeds."""

    label: str
    source: str
    """The recipe as the user named it."""
    overrides: tuple[str, ...]
    """Those of the command and those of the variation."""
    recipe: Recipe
    """Resolved, with the first seed."""
    seeds: tuple[int, ...]
    kept: tuple[str, ...] = ()
    """What `--vary BLOCK.name=...` left as the recipe has it, since that names this component
    already: a sentence for each block, for the reader of the comparison."""

    @cached_property
    def identity(self) -> Identity:
        return identity(self.recipe, file_digests(self.recipe))

    def seeded(self, seed: int) -> Recipe:
        """Its recipe with another seed."""
        return self.recipe.model_copy(update={"seed": seed})


def identity(recipe: Recipe, files: Mapping[str, str]) -> Identity:
    """What tells arms apart. files: those that the recipe starts from, see `file_digests`."""
    return recipe.name, experiment_hash(recipe, files)


def plan_arms(
    recipes: Sequence[str], overrides: Sequence[str], vary: Sequence[str], seeds: int
) -> list[PlannedArm]:
    """Every recipe in every variation. Seeds count up from that of the recipe.

    Raises RecipeError, also where two arms are the same experiment."""
    arms = [
        _planned(source, overrides, variation, seeds)
        for source in recipes
        for variation in variations(vary)
    ]
    twice = [arm for arm, n in Counter(arm.identity for arm in arms).items() if n > 1]
    if twice:
        raise RecipeError(f"{twice[0][0]}: two arms are the same experiment; leave one out")
    labels = Counter(arm.label for arm in arms)
    return [
        replace(arm, label=f"{arm.label} ({Path(arm.source).stem})") if labels[arm.label] > 1
        else arm for arm in arms
    ]  # fmt: skip


def kept_fields(arms: Sequence[PlannedArm]) -> list[str]:
    """What the reader of a comparison must know of blocks that `--vary` left as they were, where
    not all arms have them so."""
    return [note for arm in arms for note in arm.kept] if any(not arm.kept for arm in arms) else []


def variations(vary: Sequence[str]) -> list[tuple[str, ...]]:
    """Overrides of every combination: `["a=1,2", "b=3"]` gives (a=1, b=3) and (a=2, b=3).

    Raises RecipeError."""
    choices = []
    for text in vary:
        path, equals, values = text.partition("=")
        found = split_values(values) if equals and path.strip() else []
        if not found or not all(found):
            raise RecipeError(
                f"--vary {text}: expected PATH=VALUE,VALUE,..., such as train.batch_size=64,128"
            )
        choices.append([f"{path.strip()}={value}" for value in found])
    return list(itertools.product(*choices))


def split_values(text: str) -> list[str]:
    """Parts between commas; those inside brackets, braces and quotes separate nothing."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def planned_conditions(arms: Iterable[PlannedArm]) -> list[ArmConditions]:
    """Under which conditions these arms will be measured. Opens their data, and builds nothing.

    Raises RecipeError where an arm cannot run."""
    conditions, fingerprints = [], {}
    for arm in arms:
        facts = check(arm.recipe)
        data = json.dumps(arm.recipe.data.dump(), sort_keys=True)
        if data not in fingerprints:
            splits = open_splits(arm.recipe.data).present()
            fingerprints[data] = {name: reader.fingerprint() for name, reader in splits.items()}
        images = facts.total_steps * facts.batch_size
        conditions.append(
            ArmConditions(arm.label, fingerprints[data], protocol_settings(arm.recipe), images)
        )
    return conditions


def label_runs(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """A name for each group of finished runs: that of the recipe and, where several have it, the
    fields in which they differ."""
    names = [group[0].recipe.name for group in groups]
    return [
        name if names.count(name) == 1 else f"{name} {_differences(group, groups)}"
        for name, group in zip(names, groups, strict=True)
    ]


def _differences(group: Sequence[RunRecord], groups: Sequence[Sequence[RunRecord]]) -> str:
    same = [flatten(g[0].recipe) for g in groups if g[0].recipe.name == group[0].recipe.name]
    mine = flatten(group[0].recipe)
    ignored = ("seed", "runs_dir", "tracking.", "callbacks.", "expect.")
    fields = [
        key for key in mine
        if not key.startswith(ignored) and len({repr(tree.get(key)) for tree in same}) > 1
    ]  # fmt: skip
    shown = [f"{_short(key)}={mine[key]}" for key in fields[:_SHOWN_DIFFERENCES]]
    return " ".join(shown) if 0 < len(fields) <= _SHOWN_DIFFERENCES else group[0].hash[:6]


def _short(path: str) -> str:
    """What of a path says enough: the field, or the block whose component it names."""
    around, _, field = path.rpartition(".")
    return around if field == "name" and around else field


def _planned(
    source: str, overrides: Sequence[str], variation: Sequence[str], seeds: int
) -> PlannedArm:
    path = str(find_recipe(source))
    wanted = [*overrides, *variation]
    recipe = load_recipe(path, wanted)
    label, kept = recipe.name, tuple[str, ...]()
    if variation:  # runs, folders and the tracker's pages then have names that tell them apart
        label = " ".join([recipe.name, *_short_forms(variation)])
        name = sanitise_name(label.replace("=", "-"))[:_MAX_NAME].rstrip("-.")
        kept = tuple(
            note for text in variation for note in _kept(label, recipe, path, wanted, text)
        )
        wanted.append(f"name={json.dumps(name)}")
        recipe = load_recipe(path, wanted)
    numbers = tuple(recipe.seed + offset for offset in range(seeds))
    return PlannedArm(label, source, tuple(wanted), resolve(recipe), numbers, kept)


def _short_forms(variation: Sequence[str]) -> list[str]:
    """`lr=0.1`; with the whole path where two of them end alike."""
    parts = [text.partition("=") for text in variation]
    often = Counter(_short(field) for field, _, _ in parts)
    return [
        f"{_short(field) if often[_short(field)] == 1 else field}={value}"
        for field, _, value in parts
    ]


def _kept(
    label: str, recipe: Recipe, path: str, wanted: Sequence[str], variation: str
) -> Iterator[str]:
    """A sentence where a variation names the component that the recipe has already, whose fields
    then stay, while every other component begins with its defaults."""
    field, _, value = variation.partition("=")
    block, dot, last = field.rpartition(".")
    if not dot or last != "name":
        return
    try:
        plain = flatten(load_recipe(path, [*wanted, f"{block}={{name: {value}}}"]))
    except RecipeError:  # it has fields without a default: there is nothing to begin with
        return
    mine = flatten(recipe)
    inside = [key for key in mine if key.startswith(f"{block}.") and mine[key] != plain.get(key)]
    if inside:
        listed = ", ".join(f"{key.removeprefix(f'{block}.')}={mine[key]}" for key in inside)
        yield (
            f"{label}: {block} has fields of the recipe ({listed}); other components in its place "
            f"have their defaults. A whole block says all: --vary '{block}={{name: {value}, ...}}'."
        )
