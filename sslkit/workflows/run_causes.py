"""What changed between two runs that may change bits: in the recipe, the data, and the environment.
What changes none, such as loader threads or a tracker, is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sslkit.environment_variables import (
    CUBLAS_WORKSPACE_CONFIG,
    MKL_NUM_THREADS,
    NVIDIA_TF32_OVERRIDE,
)
from sslkit.recipe import Recipe, load_recipe
from sslkit.runs.environment_file import environment_changes, read_environment
from sslkit.runs.folder import RunFolder

from .resume import changed_fields

_STRONGEST = ("recipe.", "data.", "processes", "device", "torch.num_threads", "hardware.")
"""What comes first, where several things have changed."""


@dataclass(frozen=True)
class Change:
    """Something that may change bits, and differs."""

    name: str
    """Dotted: `recipe.seed`, `data.train`, `torch.num_threads`, `packages.torch`."""
    first: Any
    second: Any
    at_step: int | None = None
    """Where the first run went on with something else than it had begun with; None: between the
    beginnings of the two runs."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def find_changes(first: RunFolder, second: RunFolder) -> list[Change]:
    """What differs between two runs and may change bits, the strongest first. Raises
    CheckpointError and RecipeError where their files cannot be read."""
    ours, theirs = (read_environment(folder.path).values for folder in (first, second))
    recipes = load_recipe(first.recipe), load_recipe(second.recipe)
    found = [*_of_recipes(*recipes), *_of_environments(ours, theirs), *_on_the_way(ours)]
    return sorted(found, key=_strength)


def _strength(change: Change) -> tuple[int, str]:
    places = [n for n, start in enumerate(_STRONGEST) if change.name.startswith(start)]
    return (places[0] if places else len(_STRONGEST), change.name)


def _of_recipes(first: Recipe, second: Recipe) -> Iterator[Change]:
    for name, (ours, theirs) in changed_fields(first, second).items():
        yield Change(f"recipe.{name}", ours, theirs)
    if first.seed != second.seed:
        yield Change("recipe.seed", first.seed, second.seed)
    if first.train.parallel != second.train.parallel:  # sums are added up in another order
        yield Change("recipe.train.parallel", first.train.parallel, second.train.parallel)


def _of_environments(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Change]:
    beginning = {key: value for key, value in first.items() if key != "history"}
    for name, (ours, theirs) in environment_changes(beginning, second).items():
        yield Change(name, ours, theirs)
    ours, theirs = _block(first, "data"), _block(second, "data")
    for split in ours.keys() & theirs.keys():
        if ours[split] != theirs[split]:
            yield Change(f"data.{split}", ours[split], theirs[split])
    settings = _settings(first), _settings(second)
    for name, value in settings[0].items():
        if value != settings[1][name]:
            yield Change(f"variables.{name}", value, settings[1][name])


def _settings(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that decide bits; MKL has as many threads as torch where nobody says."""
    variables, threads = _block(environment, "variables"), _block(environment, "torch")
    own = (CUBLAS_WORKSPACE_CONFIG.name, NVIDIA_TF32_OVERRIDE.name)
    mkl = variables.get(MKL_NUM_THREADS.name, threads.get("num_threads"))
    return {MKL_NUM_THREADS.name: str(mkl), **{name: variables.get(name) for name in own}}


def _on_the_way(environment: Mapping[str, Any]) -> Iterator[Change]:
    """What had changed at the resumes of a run."""
    history = environment.get("history")
    for entry in history if isinstance(history, list) else ():
        step = entry.get("step") if isinstance(entry, Mapping) else None
        for name, pair in _block(entry, "changed").items() if isinstance(step, int) else ():
            if isinstance(pair, list) and len(pair) == 2:
                yield Change(str(name), pair[0], pair[1], step)


def _block(around: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = around.get(key)
    return found if isinstance(found, Mapping) else {}
