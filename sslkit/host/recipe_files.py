"""Recipe files: those in the installed packages, and what a user's argument stands for.

Imports no torch, so that listing recipes is fast.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from sslkit.errors import RecipeError
from sslkit.host.plugins import installed_modules, load_plugins
from sslkit.host.registry import did_you_mean

MAX_BYTES = 1 << 20
_FEW_NAMES = 12
"""More names of recipes than these are not written into a message."""
RECIPE_SUFFIXES = (".yaml", ".yml")


SCHEMA_FILE = "sslkit.schema.json"
"""The schema beside recipes, which their first line names."""
_SCHEMA_LINE = "# yaml-language-server: $schema="


def is_schema_line(line: str) -> bool:
    """Whether a line tells editors where the schema of a recipe lies."""
    return line.startswith(_SCHEMA_LINE)


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe inside the core and the installed plugins, sorted by name.

    The name is the path below the package's `recipes` folder without its suffix, such as
    `cpu/simclr_cifar10`. Where several packages ship the same name, the core keeps it and the
    others have `distribution:name`."""
    found: dict[str, Path] = {}
    for distribution, folder in _recipe_folders():
        for path in sorted(folder.rglob("*")):
            if path.suffix in RECIPE_SUFFIXES and path.is_file():
                name = path.relative_to(folder).with_suffix("").as_posix()
                found.setdefault(f"{distribution}:{name}" if name in found else name, path)
    return dict(sorted(found.items()))


def _recipe_folders() -> Iterator[tuple[str, Path]]:
    """(distribution, `recipes` folder) of the core first, then of each plugin."""
    package = Path(__file__).parents[1]
    inside, beside = package / "recipes", package.parent / "recipes"
    if inside.is_dir():
        yield "sslkit", inside
    elif (package.parent / "pyproject.toml").is_file() and beside.is_dir():  # a checkout
        yield "sslkit", beside
    for distribution, module in installed_modules():
        top = module.partition(".")[0]
        if top == "sslkit":
            continue
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            continue
        for location in (spec and spec.submodule_search_locations) or ():
            if (folder := Path(location) / "recipes").is_dir():
                yield distribution, folder


def find_recipe(source: Path | str) -> Path:
    """The file that an argument stands for: a path, or the name of a shipped recipe.

    Raises RecipeError."""
    text = os.fspath(source)
    path = Path(text)
    try:
        if path.exists() and not path.is_dir():
            return path
    except (OSError, ValueError) as error:  # a name that is too long or holds a null byte
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{text[:80]!r}: is no path: {reason}") from error
    shipped = shipped_recipes()
    name = text.removesuffix(".yaml").removesuffix(".yml")
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.iterdir() if p.suffix in RECIPE_SUFFIXES))
        raise RecipeError(
            f"{text}: is a folder, expected a recipe file. Recipes in it: {inside or 'none'}"
        )
    raise RecipeError(_not_found(text, path, shipped))


def _not_found(text: str, path: Path, shipped: dict[str, Path]) -> str:
    neighbours: dict[str, str] = {}
    if path.parent.is_dir():
        for neighbour in path.parent.iterdir():
            if neighbour.suffix in RECIPE_SUFFIXES:
                neighbours[str(neighbour)] = str(neighbour)
    guess = did_you_mean(str(path), neighbours) or did_you_mean(
        path.with_suffix("").as_posix(), shipped
    )
    message = f"{text}: no such file or shipped recipe{guess or '.'} {_shipped_words(shipped)}"
    # A plugin that cannot be imported may have no folder that recipes are looked for in.
    broken = [record for record in load_plugins().records if record.reason is not None]
    if not broken:
        return message
    listed = "; ".join(f"{each.name} of {each.distribution} ({each.reason})" for each in broken)
    return f"{message}. Broken plugins that may ship it: {listed}"


def _shipped_words(shipped: Collection[str]) -> str:
    """Where the names are, and the names where they are few."""
    if len(shipped) > _FEW_NAMES:
        return f"{len(shipped)} are shipped: sslkit recipes list"
    return f"Shipped recipes: {', '.join(shipped) or 'none'}"


def copy_recipe(name: str, target: Path) -> Path:
    """Copies a shipped recipe to a file or into a folder; returns the new file, whose first line
    names the schema beside it.

    Raises RecipeError where the name is unknown or the file exists already."""
    shipped = shipped_recipes()
    if name not in shipped:
        guess = did_you_mean(name, shipped) or "."
        raise RecipeError(f"'{name}': no such recipe{guess} {_shipped_words(shipped)}")
    path = target / shipped[name].name if target.is_dir() else target
    if path.exists():
        raise RecipeError(f"{path}: exists already; give another name or remove it first")
    lines = shipped[name].read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if not is_schema_line(line))
    try:
        path.write_text(f"{_SCHEMA_LINE}{SCHEMA_FILE}\n{text}", encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def read_recipe_text(path: Path) -> str:
    """The text of a recipe file. Raises RecipeError, for pipes and devices too: reading them may
    never end. What the shell hands over below /dev (`<(...)`, `/dev/stdin`) is read."""
    if path.exists() and not path.is_file() and not path.is_relative_to("/dev"):
        raise RecipeError(f"{path}: is no regular file; expected a recipe")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, which no recipe is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise RecipeError(
            f"{path}:{line}:{column}: is not UTF-8 text (byte 0x{data[error.start]:02x})"
        ) from error
