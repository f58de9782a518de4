"""What is tried: one component with its configuration, and where it does its work."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from sslkit import installed_components
from sslkit.api import INTERFACES, Component, Slot
from sslkit.errors import PluginError, RecipeError
from sslkit.host.plugins import KINDS, components_named
from sslkit.host.registry import normalise
from sslkit.recipe import Recipe, components, load_recipe
from sslkit.recipe.component_block import name_component

SMALL_RECIPE = Path(__file__).with_name("small.yaml")


class Subject:
    """A component under trial.

    slot: the component and its configuration. recipe: where it stands, or None: in the kit's own
    small one."""

    def __init__(self, slot: Slot[Any], recipe: Recipe | None = None) -> None:
        self.slot = slot
        self.kind: str = slot.cls.kind
        self._recipe = recipe

    @cached_property
    def folder(self) -> Path:
        """A folder of its own, which goes when the subject does."""
        self._temporary = TemporaryDirectory(prefix="sslkit-check-")
        return Path(self._temporary.name)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the component stands in; the kit's own where none was given."""
        return self._recipe or load_recipe(SMALL_RECIPE)

    @property
    def has_recipe(self) -> bool:
        """Whether a recipe was given."""
        return self._recipe is not None

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps what the component prints, and warnings that are shown once, off the table."""
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield

    def __str__(self) -> str:
        return f"{self.kind} '{self.slot.name}'"


def find_subject(
    component: str | type[Component],
    fields: Mapping[str, Any],
    recipe: Path | str | None = None,
) -> Subject:
    """The component that a name stands for, `loss:mine`, or `mine` where one kind has it; or a
    class itself. Raises PluginError and RecipeError."""
    loaded = load_recipe(recipe) if recipe is not None else None
    if isinstance(component, type):
        return Subject(slot_of(component, fields), loaded)
    kind, name = find_kind(component)
    if loaded is not None and not fields:
        return Subject(_in_recipe(loaded, kind, name, recipe), loaded)
    return Subject(name_component(kind, name, fields), loaded)


def _in_recipe(recipe: Recipe, kind: str, name: str, source: object) -> Slot[Any]:
    """The component as a recipe has it, wherever it stands there. Raises RecipeError."""
    there = [slot for _, slot in components(recipe) if slot.cls.kind == kind]
    for slot in there:
        if _bare(slot.name) == _bare(name):
            return slot
    names = ", ".join(sorted({slot.name for slot in there})) or "none"
    raise RecipeError(
        f"{source}: has no {kind} '{name}'; of this kind it has {names}. Give the component fields "
        "of its own (-o), or another recipe"
    )


def _bare(name: str) -> str:
    return name.rpartition(":")[2]


def slot_of(cls: type[Component], fields: Mapping[str, Any]) -> Slot[Any]:
    """A class as a recipe would name it, where no plugin registers it."""
    if not any(issubclass(cls, interface) for interface in INTERFACES):
        raise PluginError(
            f"{cls.__qualname__}: is no component; derive it from a class of sslkit.api"
        )
    context = {"registry": installed_components()}
    try:
        config = cls.Config.model_validate(dict(fields), context=context)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([cls.__name__, *map(str, first["loc"])])
        said = "is required" if first["type"] == "missing" else first["msg"]
        raise RecipeError(f"{where}: {said}") from error
    return Slot(cls, cls.__name__, config, "class", "0")


def find_kind(component: str) -> tuple[str, str]:
    """(kind, name) of `loss:mine`, `mine` or `sslkit-mine:mine`. Raises PluginError where there is
    no such component, or one of several kinds."""
    found = components_named(installed_components(), component)
    if len(found) == 1:
        return found[0]
    kinds = " and a ".join(kind for kind, _ in found)
    choices = " or ".join(f"{kind}:{name}" for kind, name in found)
    raise PluginError(f"'{component}': is a {kinds}; say which: {choices}")


def find_subjects(
    name: str, kind: str | None, fields: Mapping[str, Any], recipe: Path | str | None = None
) -> tuple[list[Subject], dict[str, str]]:
    """The component of a name, of this kind where one is given, or all components of a
    distribution, `sslkit-mine`; and of that, component -> why it cannot be tried, where it needs
    fields or is not in the recipe. Raises PluginError and RecipeError."""
    if kind is not None and kind not in KINDS:
        raise PluginError(f"--kind: '{kind}' is not a kind of component; kinds: {', '.join(KINDS)}")
    registry = installed_components()
    entries = [e for e in registry.entries(kind) if e.distribution == normalise(name)]
    if not entries:
        return [find_subject(f"{kind}:{name}" if kind else name, fields, recipe)], {}
    if fields:
        raise RecipeError(f"'{name}': is a distribution; give fields of one component at a time")
    found, others = [], {}
    for entry in entries:
        shared = registry.is_ambiguous(entry.kind, entry.name)
        called = entry.qualified if shared else entry.name
        try:
            found.append(find_subject(f"{entry.kind}:{called}", {}, recipe))
        except RecipeError as error:
            alone = f"check it by itself, with what it needs: {entry.kind}:{called} -o FIELD=VALUE"
            first, _, _ = str(error).partition("\n")
            others[f"{entry.kind} '{entry.name}'"] = f"{first}; {alone}"
    return found, others


def plugin_module(slot: Slot[Any]) -> str:
    """The module that a component lies in."""
    return slot.cls.__module__


def is_importable(module: str) -> bool:
    """Whether another process can import a module: not one of a script or a notebook."""
    found = sys.modules.get(module)
    return module != "__main__" and getattr(found, "__spec__", None) is not None
