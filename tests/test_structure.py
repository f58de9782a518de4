"""The laws about the source itself: what may import what, and that the core names no method."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sslkit.host.plugins import load_plugins
from sslkit.runs.folder import RunFolder

PACKAGE = Path(__file__).parents[1] / "sslkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [PACKAGE, *sorted((PACKAGE.parent / "plugins").glob("*/src"))]

LAYERS = (
    ("__main__",),
    ("cli",),
    ("testing",),
    ("workflows",),
    ("experiment",),
    ("engine", "report", "tracking"),
    ("data", "runs"),
    ("recipe",),
    ("host",),
    ("evaluation",),
    ("interfaces",),
    ("api",),
    ("nn",),
    ("parallel", "randomness", "threads"),
    ("environment_variables",),
    ("files", "run_files"),
    ("deprecation", "errors"),
)
"""From the top floor down. A room imports from lower floors only: not from its own floor, never
upwards; imports for type checking count. `builtin` stands apart: see AUTHORS_MAY_IMPORT."""

ROOT = ""
"""`sslkit/__init__.py`: what `import sslkit` gives. Everybody may import it; it imports what it
hands out when that is called."""

AUTHORS_MAY_IMPORT = {
    ROOT, "api", "nn", "parallel", "errors", "files", "randomness", "threads",
    "environment_variables", "builtin",
}  # fmt: skip


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module's syntax tree: it is parsed and walked once for all tests."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def texts(path: Path) -> frozenset[object]:
    """Every constant of a module."""
    return frozenset(node.value for node in nodes(path) if isinstance(node, ast.Constant))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Modules of sslkit that a module imports, those for type checking included."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    package = ".".join(("sslkit", *path.relative_to(PACKAGE).parts[:-1]))
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("sslkit"))
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = f"{start}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            for name in node.names if module.split(".")[0] == "sslkit" else ():
                inner = f"{module}.{name.name}"
                yield inner if inner in NAMES else module


def module_name(path: Path) -> str:
    """`.../sslkit/engine/loop.py` -> `sslkit.engine.loop`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def room(module: str) -> str:
    """`sslkit.engine.loop` -> `engine`."""
    words = module.split(".")
    return words[1] if len(words) > 1 else ROOT


FLOORS = {name: floor for floor, names in enumerate(LAYERS) for name in names}


def test_every_room_has_a_floor() -> None:
    rooms = {room(module_name(path)) for path in MODULES}
    assert rooms == FLOORS.keys() | {ROOT, "builtin"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_upwards(path: Path) -> None:
    own = room(module_name(path))
    if own in ("builtin", ROOT):
        return
    for module in imports(path):
        other = room(module)
        assert other != "builtin", f"{path.name} imports {module}: nobody imports builtin"
        if other not in (own, ROOT):
            assert FLOORS[other] > FLOORS[own], f"{path.name} ({own}) imports {module}"


def test_no_import_goes_in_a_circle() -> None:
    """Not between modules either, imports for type checking and those inside functions included."""
    graph = {
        module_name(path): {name for name in imports(path) if name in NAMES}
        - {"sslkit", module_name(path)}
        for path in MODULES
        if module_name(path) != "sslkit"
    }
    for name in graph:  # a module imports the packages that it lies in before itself
        graph[name] -= {".".join(name.split(".")[:depth]) for depth in range(name.count(".") + 1)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_begins_with_an_underscore_stays_in_its_module(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.level or "sslkit" in str(node.module)):
            private = [n.name for n in node.names if n.name.startswith("_") and n.name[1] != "_"]
            assert not private, f"{path.name}:{node.lineno} imports {private}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "builtin").rglob("*.py")), ids=lambda p: p.name)
def test_builtins_import_what_any_plugin_may(path: Path) -> None:
    for module in imports(path):
        assert room(module) in AUTHORS_MAY_IMPORT, f"{path.name} imports {module}"


def test_core_names_no_method() -> None:
    """No text in the core is the name of an installed method."""
    methods = set(load_plugins().registry.names("method"))
    assert "simclr" in methods
    for path in MODULES:
        if room(module_name(path)) != "builtin":
            assert not texts(path) & methods, path


PACKAGES = sorted(path.parent for path in (PACKAGE.parent / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_plugin_touches_no_file_outside_its_package(package: Path) -> None:
    """Not one file of sslkit, `builtin` included, names the distribution, the module or a component
    of a package beside it in its code; the files that do are counted."""
    names = {package.name, package.name.replace("-", "_")}
    for entry in load_plugins().registry.entries():
        if entry.distribution == package.name:
            names |= {entry.name, entry.qualified, entry.target}
    assert len(names) > 4
    touched = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if names & (texts(path) | imported(path))
    ]
    assert (len(touched), touched) == (0, [])


@cache
def imported(path: Path) -> frozenset[str]:
    """The top packages that a module imports."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def test_no_code_from_disk() -> None:
    """No pickle, no eval, no exec, no unsafe YAML."""
    forbidden = re.compile(
        r"pickle\.load|weights_only=False|(?<![.\w])eval\(|(?<![.\w])exec\(|yaml\.(unsafe_)?load\("
    )
    for path in MODULES:
        text = "\n".join(
            line for line in path.read_text(encoding="utf-8").splitlines()
            if not line.lstrip().startswith(("#", '"'))
        )  # fmt: skip
        assert not forbidden.search(text), path


MIRRORS = (
    {"api", "builtin", "plugins"},  # the contract, and what fulfils it
    {"cli", "workflows", "report"},  # a command: its options, its work, its words
    {"nn", "builtin"},  # the mathematics, and the component that uses it
)
"""Rooms whose modules may have the same name, as they are about the same thing."""
OTHER_MIRRORS = {
    "figures": "report has some, report/comparison those of several runs",
    "pack": "the command, and packs themselves in data",
    "plugins": "the command, and host, which finds them",
    "schema": "the command, and recipe, whose schema it is",
    "views": "the contract in api, and data, which makes them",
}


def test_no_name_of_a_module_says_two_things() -> None:
    """A person who opens `labels.py` by its name should not have to ask which."""
    rooms: dict[str, list[str]] = {}
    for root in SOURCES:
        for path in root.rglob("*.py"):
            if not path.stem.startswith("__"):
                first = path.relative_to(root).parts[0] if root == PACKAGE else "plugins"
                rooms.setdefault(path.stem, []).append(first)
    twice = {stem: found for stem, found in rooms.items() if len(found) > 1}
    for stem, found in twice.items():
        mirrored = any(set(found) <= family for family in MIRRORS)
        in_one_room = len(set(found)) < len(found)
        assert stem in OTHER_MIRRORS or (mirrored and not in_one_room), f"{stem}: {found}"
    assert all(len(rooms[stem]) > 1 for stem in OTHER_MIRRORS)


MOST_ARGUMENTS, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 7, 50, 350
LONGER_AND_BETTER_SO = {
    "nn/lars.py LARS.__init__": "a keyword for each field of a parameter group, as torch's",
    "nn/mlp.py mlp": "a keyword for each rule by which heads of papers differ; plugins call it so",
}
"""What is above these limits -> why it reads better so."""


def sources() -> Iterator[tuple[str, str]]:
    """(name, text) of every module, those of the plugins in this repository included."""
    for root in SOURCES:
        for path in sorted(root.rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(name, definition) of every function, those of a class by `Class.method`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body
                        if isinstance(each, ast.FunctionDef))  # fmt: skip
    methods = {each for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
               for each in node.body}  # fmt: skip
    yield from ((node.name, node) for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef) and node not in methods)  # fmt: skip


def arguments(function: ast.FunctionDef) -> int:
    """How many a caller may give; torch gives `ctx`, as Python gives `self`."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return len(
        [each for each in named if each is not None and each.arg not in ("self", "cls", "ctx")]
    )


def too_long(sources: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What is above a limit -> by how much. The options of a command are its interface, so that
    the function of a command, which has the name of its file, takes as many as there are."""
    found = {}
    for name, text in sources:
        if (lines := text.count("\n")) > MOST_LINES_OF_A_FILE:
            found[name] = f"{lines} lines"
        for function, node in functions(ast.parse(text)):
            is_command = name == f"cli/{function}.py"
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION:
                found[f"{name} {function}"] = f"{lines} lines"
            elif arguments(node) > MOST_ARGUMENTS and not is_command:
                found[f"{name} {function}"] = f"{arguments(node)} arguments"
    return found


def test_nothing_is_too_long() -> None:
    """Where this fails: take apart what does two things, or bundle arguments that belong together
    in a dataclass that others use, too. Where neither reads better, say why in the list."""
    assert too_long(sources()).keys() == LONGER_AND_BETTER_SO.keys()


def test_what_is_too_long_is_found() -> None:
    arguments = ", ".join(f"a{number}" for number in range(8))
    method = f"class Thing:\n    def __init__(self, {arguments}): ...\n"
    function = "def long():\n" + "    pass\n" * 50
    command = f"def {{}}({arguments}): ..."
    found = too_long([
        ("nn/thing.py", method), ("nn/long.py", function), ("nn/file.py", "\n" * 351),
        ("cli/thing.py", command.format("thing")), ("cli/other.py", command.format("helper")),
        ("nn/fine.py", "def fine(a, b, c, d, e, f, *, g): ...\n" + "\n" * 349),
    ])  # fmt: skip
    assert found == {
        "nn/thing.py Thing.__init__": "8 arguments",
        "nn/long.py long": "51 lines",
        "nn/file.py": "351 lines",
        "cli/other.py helper": "8 arguments",
    }


def test_no_call_gives_more_than_seven_values_without_their_names() -> None:
    """Dataclasses may have more fields, where they record what was found; who makes one names
    them."""
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                assert len(node.args) <= MOST_ARGUMENTS, f"{name}:{node.lineno}"


THEIR_OWNERS = ("runs/", "run_files.py")
"""Who may know the names of the files in a run folder: its room, and the contract that gives
trackers the paths."""
COMMON_WORDS = {"figures", "evaluations"}
"""Folders of a run whose names are common words in code."""


def names_in_a_run_folder() -> set[str]:
    folder = RunFolder(Path("x"))
    found = {folder.corrupt_images("train"), folder.corrupt_images("test")}
    for cls in type(folder).__mro__:
        for value in vars(cls).values():
            if isinstance(value, property) and value.fget is not None:
                found.add(value.fget(folder))
    return {path.name for path in found if isinstance(path, Path)} - COMMON_WORDS


def test_only_the_run_folder_knows_the_names_of_its_files() -> None:
    """Code asks `RunFolder` or `RunView.files`; what is printed for people may name a file."""
    names = names_in_a_run_folder()
    assert {"recipe.resolved.yaml", "checkpoints", "results.json", "encoder.safetensors"} <= names
    known = {}
    for path in MODULES:
        place = path.relative_to(PACKAGE).as_posix()
        for node in nodes(path):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and names & set(re.split(r"[/*]", text)):
                known.setdefault(place, []).append(text)
    assert not {place: texts for place, texts in known.items()
                if not place.startswith(THEIR_OWNERS)}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_name_the_thing(path: Path) -> None:
    """`path: str` is documented as "The path of the field", not as "Of the field"."""
    for node in nodes(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = str(node.value.value)
            assert not text.startswith("Of "), f"{path.name}:{node.lineno}: {text}"
