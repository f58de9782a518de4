"""`sslkit validate`: what is wrong with a recipe or its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslkit.errors import RecipeError, SSLKitError
from sslkit.experiment.check import check, check_without_data
from sslkit.experiment.networks import make_without_memory
from sslkit.experiment.resolve import resolve
from sslkit.recipe import find_recipe, load_recipe
from sslkit.recipe.warnings import find_warnings, network_warnings


@dataclass(frozen=True)
class Validation:
    """What was found in a recipe and its data."""

    problems: tuple[str, ...]
    """What keeps it from running, one line each."""
    warnings: tuple[str, ...] = ()
    """What will run and is rarely meant."""

    def to_json(self) -> list[str]:
        """The problems, ready for JSON."""
        return list(self.problems)


def validate(recipe: str | Path, overrides: Sequence[str], *, data: bool = True) -> Validation:
    """Checks a recipe and its data, and builds the networks without memory. data: False looks at
    the recipe alone: it builds nothing, and warns of nothing."""
    try:
        wanted = resolve(load_recipe(find_recipe(recipe), overrides))
        if not data:
            check_without_data(wanted)
            return Validation(())
        facts = check(wanted)
    except SSLKitError as error:
        return Validation(tuple(str(error).splitlines()))
    warnings = find_warnings(wanted, facts)
    try:
        method = make_without_memory(wanted, facts)
    except RecipeError as error:
        return Validation(error.problems, tuple(map(str, warnings)))
    if method is not None:
        warnings += network_warnings(wanted, method, facts.sample.noun)
    return Validation((), tuple(map(str, warnings)))
