"""What makes two recipes the same, and the written-out forms of a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sslkit.api import ScheduledNumber, Slot
from sslkit.api.renamed_fields import first_names
from sslkit.errors import RecipeError
from sslkit.files import reason
from sslkit.nn.weights import weight_file

from .model import Recipe, components
from .yaml_positions import dump_document

Scalar = str | int | float | bool | None

_NOT_HASHED = frozenset({"name", "seed", "callbacks", "tracking", "expect", "runs_dir", "origins"})
_NOT_HASHED_IN_TRAIN = frozenset(
    {
        "device",
        "loader_threads",
        "parallel",
        "log_every_steps",
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "checkpoint_in_background",
        "keep_checkpoints",
    }
)
_PATH = "<path>"
_WITHOUT_FILES = frozenset({"data", "evaluate", "tracking", "callbacks"})


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits that are equal for recipes that make the same experiment.

    Covers `hashed_view(recipe)`. Left out, because a change of it repeats the same experiment:
    - `seed`: runs that differ in it are repetitions;
    - `name`, `expect`, `origins`: names, judges and records;
    - `tracking`, `callbacks`, `runs_dir`, `train.log_every_steps`, `train.checkpoint_every_epochs`,
      `train.checkpoint_every_steps`, `train.checkpoint_in_background`, `train.keep_checkpoints`:
      watch and store;
    - `train.loader_threads`: the same bits for any number;
    - `train.parallel`: how processes share the same computation;
    - `train.device`: the same mathematics elsewhere; the environment record has the device;
    - the value of every path (that one is given counts): data have fingerprints, and other files
      are told apart by what is in them, see `experiment_hash`.

    Names count with their distribution and without its version, so that a new release of a plugin
    keeps the hash and another plugin's component of the same name does not. The order of fields,
    positions in the file and whether a default is written out do not matter, nor does whether a
    field is written under an old name of it.
    """
    view = json.dumps(hashed_view(recipe, first_names=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(view.encode()).hexdigest()[:16]


def backbone_name(recipe: Recipe) -> str:
    """What to call the backbone: the model, where it is one of a family."""
    return recipe.backbone.cls.label(recipe.backbone.config) or recipe.backbone.name


def experiment_hash(recipe: Recipe, files: Mapping[str, str]) -> str:
    """`recipe_hash`, where the recipe names files that the training starts from, with what is in
    them: what repetitions of an experiment share. files: field -> digest."""
    if not files:
        return recipe_hash(recipe)
    text = json.dumps([recipe_hash(recipe), dict(files)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digests(recipe: Recipe) -> dict[str, str]:
    """Field -> digest of the file that it names, or of the weights in the run folder, for all
    components but sources of data, which have fingerprints, and what only watches or stores. Files
    that are not there are left out. Raises RecipeError where one cannot be read."""
    found = {}
    for where, slot in components(recipe):
        if where.partition(".")[0] in _WITHOUT_FILES:
            continue
        for field, value in slot.config:
            if isinstance(value, Path) and (file := weight_file(value)).is_file():
                found[f"{where}.{field}"] = _digest(file, f"{where}.{field}")
    return found


def _digest(file: Path, field: str) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    except OSError as error:
        raise RecipeError(
            f"{field}: {file} cannot be read: {reason(error)}; name a file that can be"
        ) from error


def hashed_view(recipe: Recipe, *, first_names: bool = False) -> dict[str, Any]:
    """What `recipe_hash` covers, as JSON types. first_names: fields that had other names under the
    first of them, so that a new name keeps the hash."""
    view: dict[str, Any] = _view(recipe, recipe.model_dump(mode="json"), first_names)
    view = {key: value for key, value in view.items() if key not in _NOT_HASHED}
    train = view["train"].items()
    view["train"] = {key: value for key, value in train if key not in _NOT_HASHED_IN_TRAIN}
    return view


def _view(value: Any, written: Any, first: bool) -> Any:
    """What a recipe would hold for a value (`written`), names qualified and paths masked. first:
    the first names of fields."""
    if isinstance(value, ScheduledNumber):
        return written if value.schedule is None else _view(value.schedule, written, first)
    if isinstance(value, Slot):
        plain = value.name.rpartition(":")[2]
        return {**_view(value.config, written, first), "name": f"{value.distribution}:{plain}"}
    if isinstance(value, Path):
        return _PATH
    if isinstance(value, BaseModel) and isinstance(written, Mapping):
        names = first_names(type(value)) if first else {}
        return {
            names.get(name, name): _view(getattr(value, name, None), item, first)
            for name, item in written.items()
        }
    if isinstance(value, Mapping) and isinstance(written, Mapping):
        inside = {str(key): item for key, item in value.items()}
        return {name: _view(inside.get(name), item, first) for name, item in written.items()}
    if isinstance(value, (list, tuple)) and isinstance(written, list):
        return [_view(*pair, first) for pair in zip(value, written, strict=True)]
    return written


def dump_resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out and the origin of every component.

    Read back, it is an equal recipe with an equal hash."""
    tree = recipe.model_dump(mode="json", exclude={"origins"})
    tree["origins"] = {
        path: {"distribution": slot.distribution, "version": slot.version}
        for path, slot in components(recipe)
    }
    return dump_document(tree)


def flatten(recipe: Recipe) -> dict[str, Scalar]:
    """Dotted path -> value of every field but `origins`, items of lists by index; an empty list or
    block has no entry."""
    return dict(_flatten(recipe.model_dump(mode="json", exclude={"origins"}), ()))


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flatten(item, (*path, str(index)))
    else:
        yield ".".join(path), value
