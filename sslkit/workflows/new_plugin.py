"""`sslkit plugins new`: a plugin package that works the moment it is made, from the templates of
its kind.

The templates are a package called `newname`, in files that are real except for their names:
`common` for every kind, and `kinds/<kind>` on top of it."""

from __future__ import annotations

import json
import keyword
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import yaml

from sslkit.deprecation import INTERFACE_VERSION
from sslkit.errors import RecipeError
from sslkit.files import UMASK
from sslkit.host.plugins import HOOK_KINDS, KINDS, load_plugins
from sslkit.host.recipe_files import shipped_recipes
from sslkit.host.registry import did_you_mean

LICENSES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}
"""What a person writes -> its SPDX identifier."""
LONGEST_NAME = 20
"""Letters of a name: tables show it whole, and the lines of the package stay in their width."""
_LONGEST_AUTHOR = 100
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_BINARY = {".npy"}


@dataclass(frozen=True)
class NewPlugin:
    """A package that was made."""

    path: Path
    kind: str
    component: str
    """What recipes call it; also the name of the recipe that it ships."""
    license: str
    """SPDX identifier."""
    files: tuple[str, ...]
    """Relative to `path`, sorted."""


def new_plugin(
    name: str, kind: str, folder: Path = Path(), license: str = "apache-2.0", author: str = ""
) -> NewPlugin:
    """Makes `folder/sslkit-NAME`, a package with one component of a kind, its recipe and its tests.

    name: `my-loss` makes the distribution sslkit-my-loss, the module sslkit_my_loss, the component
    my_loss and the class MyLoss. author: of the licence; empty takes that of git. The package is
    written beside its place and moved there when it is whole.

    Raises RecipeError for a name that is no name or is taken, for an unknown kind or licence, and
    where there is something in the place already or nothing can be made; OSError for a full disk.
    """
    _check_choice("--kind", kind, KINDS)
    _check_choice("--license", license, tuple(LICENSES))
    plain = _plain_name(name)
    _refuse_taken(plain)
    author = _checked_author(author) if author else _own_name(plain)
    target = folder / f"sslkit-{plain.replace('_', '-')}"
    _check_place(folder, target)
    texts = _package(plain, kind, license, author)
    with _becoming(target) as place:
        for path, content in texts.items():
            file = place / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return NewPlugin(target, kind, plain, LICENSES[license], tuple(sorted(texts)))


# --- What was given -------------------------------------------------------------------------------


def _check_choice(option: str, given: str, valid: tuple[str, ...]) -> None:
    if given not in valid:
        guess = did_you_mean(given, valid) or "."
        raise RecipeError(f"{option}: got {given[:40]!r}{guess} Valid: {', '.join(valid)}")


def _plain_name(name: str) -> str:
    """The name as a component has it, `my_loss`. Raises RecipeError."""
    given = name.removeprefix("sslkit-").removeprefix("sslkit_")
    if not _NAME.fullmatch(given):
        words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", given).lower())
        better = "-".join(words)[:LONGEST_NAME].strip("-")
        guess = f", such as {better!r}" if _NAME.fullmatch(better) else ", such as 'my-loss'"
        raise RecipeError(
            f"NAME: got {name[:60]!r}; valid are small letters and digits, in words with - or _ "
            f"between them, a letter first{guess}"
        )
    plain = given.replace("-", "_")
    if len(plain) > LONGEST_NAME:
        raise RecipeError(
            f"NAME: {given[:60]!r} has {len(plain)} letters; valid are at most {LONGEST_NAME}"
        )
    if keyword.iskeyword(plain) or not isinstance(yaml.safe_load(plain), str):
        whose = "Python" if keyword.iskeyword(plain) else "YAML"
        raise RecipeError(f"NAME: {given!r} means something else in {whose}; choose another name")
    if plain in KINDS:
        raise RecipeError(f"NAME: {given!r} is a kind of component; choose a name of its own")
    return plain


def _refuse_taken(plain: str) -> None:
    """Refuses names by which something that is installed is already known."""
    for entry in load_plugins().registry.entries():
        if entry.name == plain:
            raise RecipeError(
                f"NAME: {plain!r} is taken by the {entry.kind} of {entry.distribution} "
                f"{entry.version}; choose another name"
            )
    if plain in shipped_recipes():
        raise RecipeError(f"NAME: {plain!r} is a recipe that is installed; choose another name")
    distribution, module = f"sslkit-{plain.replace('_', '-')}", f"sslkit_{plain}"
    try:
        found = f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        found = f"the module {module}" if find_spec(module) is not None else ""
    if found:
        raise RecipeError(f"NAME: {found} is installed; choose another name, or uninstall it")


def _checked_author(author: str) -> str:
    if not author.isprintable() or not author.strip() or len(author) > _LONGEST_AUTHOR:
        raise RecipeError(
            f"--author: got {author[:40]!r}; valid is a name in one line, at most "
            f"{_LONGEST_AUTHOR} letters"
        )
    return author.strip()


def _own_name(plain: str) -> str:
    """Who makes the package: by git, or whoever it is."""
    try:
        command = ["git", "config", "user.name"]
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
        return _checked_author(done.stdout.decode("utf-8").strip())
    except (OSError, ValueError, subprocess.SubprocessError, RecipeError):
        return f"The authors of sslkit-{plain.replace('_', '-')}"


def _check_place(folder: Path, target: Path) -> None:
    if not folder.is_dir():
        raise RecipeError(f"--folder: {folder} is no folder; make it first, or give another")
    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target}: exists already; give another name or folder, or remove it")


# --- What is written ------------------------------------------------------------------------------


def _package(plain: str, kind: str, license: str, author: str) -> dict[str, bytes]:
    """Path in the package -> content."""
    root = _templates()
    files = {**_files(root / "common"), **_files(root / "kinds" / kind)}
    summary, _, about = files.pop("about.md").decode().partition("\n\n")
    words = {
        "NewSummary": summary,
        "NewAbout": about.strip(),
        "NewUse": files.pop("use.yaml").decode().strip(),
    }
    hook = next(hook for hook, of_kind in HOOK_KINDS.items() if of_kind == kind)
    names = {
        "sslkit-newname": f"sslkit-{plain.replace('_', '-')}",
        "newname": plain,
        "NewName": _class_name(plain, kind, files[f"src/sslkit_newname/{kind}.py"].decode()),
        "register_newkind": hook,
        "newkind": kind,
        "NewLicense": LICENSES[license],
        "NewYear": str(date.today().year),
        "NewQuotedAuthor": json.dumps(author, ensure_ascii=False),  # as TOML quotes it
        "NewAuthor": author,
        "NewInterface": str(INTERFACE_VERSION),
    }
    files["LICENSE"] = (root / "licenses" / f"{license}.txt").read_bytes()
    written = {}
    for path, content in files.items():
        if Path(path).suffix not in _BINARY:
            content = _replaced(_replaced(content.decode(), words), names).encode()
        written[_replaced(path, names)] = content
    return written


def _templates() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "templates"
    return (inside if inside.is_dir() else package.parent / "templates") / "plugin"


def _files(folder: Path) -> dict[str, bytes]:
    """Path -> content. A leading `dot_` stands for a dot, which tools would take as theirs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = re.sub(r"(^|/)dot_", r"\1.", path.relative_to(folder).as_posix())
            found[name] = path.read_bytes()
    return found


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """The text with all names replaced at once: nothing in a replacement is a name again."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda match: names[match[0]], text)


def _class_name(plain: str, kind: str, module: str) -> str:
    """`my_loss` -> `MyLoss`; with the kind behind it where the module has that name already."""
    name = "".join(part.capitalize() for part in plain.split("_"))
    taken = re.search(rf"\b{name}\b", module) or keyword.iskeyword(name)
    return f"{name}{kind.capitalize()}" if taken else name


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which becomes it at the end of the block and is removed where
    the block raises."""
    try:
        made = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise RecipeError(
            f"--folder: {target.parent} cannot be written to ({error.strerror}); give another"
        ) from error
    place = Path(made)
    try:
        yield place
        place.chmod(0o777 & ~UMASK)  # mkdtemp lets only the owner in
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
