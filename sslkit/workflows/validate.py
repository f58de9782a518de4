"""`sslkit validate`: what is wrong with a recipe or its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslkit.errors import SSLKitError
from sslkit.experiment.check import check, check_without_data
from sslkit.experiment.resolve import resolve
from sslkit.recipe import find_recipe, load_recipe
from sslkit.recipe.warnings import find_warnings


def find_problems(
    recipe: str | Path,
    overrides: Sequence[str],
    warnings: list[str] | None = None,
    *,
    data: bool = True,
) -> tuple[str, ...]:
    """What is wrong with a recipe or its data, one line each. warnings: takes what will run and is
    rarely meant. data: False looks at the recipe alone, and warns of nothing."""
    try:
        wanted = resolve(load_recipe(find_recipe(recipe), overrides))
        facts = check(wanted) if data else None
        if facts is None:
            check_without_data(wanted)
    except SSLKitError as error:
        return tuple(str(error).splitlines())
    if warnings is not None and facts is not None:
        warnings += map(str, find_warnings(wanted, facts))
    return ()
