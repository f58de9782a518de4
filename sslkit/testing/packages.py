"""What holds of a whole package: its recipes run, and say all; its modules import what they may."""

from __future__ import annotations

import ast
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

SMALL_IMAGES = (
    "data={name: synthetic, num_train: 32, num_test: 16, size: 16}",
    "augmentation.size=16",
    "train.precision=fp32",  # maps of 16 px end at 1x1, where torch's bf16 on CPUs has a fault
    "backbone={name: timm, model: test_resnet}",
)
"""Overrides that give a recipe for images data and a backbone of no size."""
_TWO_STEPS = (
    "train.batch_size=16",
    "train.max_steps=2",
    "train.epochs=1",
    "train.compile=false",
    "train.device=cpu",
    "schedule={name: constant}",  # a warm-up may be longer than the epoch
    "evaluate=[]",
    "expect={}",
    "tracking={name: none}",
)
_ROOMS = ("sslkit", "sslkit.api", "sslkit.errors", "sslkit.randomness", "sslkit.nn")
"""What the modules of a package may import of sslkit, and what lies in it."""


@dataclass(frozen=True)
class PackageCheck:
    """Something that holds of a package, for `pytest.mark.parametrize(..., ids=str)`. Called, it
    raises AssertionError, of one line, where it does not hold."""

    name: str
    function: Callable[[], None]
    slow: bool = False
    """Whether it can wait: the steps of a further recipe of a method."""

    def __call__(self) -> None:
        self.function()

    def __str__(self) -> str:
        return self.name


def package_checks(
    package: ModuleType,
    overrides: Callable[[Mapping[str, Any]], Sequence[str]],
    *,
    unstated: Mapping[str, Any] | None = None,
    siblings: Mapping[str, str] | None = None,
) -> list[PackageCheck]:
    """Checks of an installed package that ships recipes in `recipes/` beside its modules.

    Its modules import of sslkit what plugins may; each of its methods has a recipe; each recipe is
    found by its name, states every field of its method, and takes two steps of 16 samples.

    overrides: of a recipe, given as its file has it: what lets the two steps take a second, such as
    `[*SMALL_IMAGES, "method.queue_size=32"]`. unstated: fields of methods that a recipe may leave
    out, with their values. siblings: recipe of this package -> a shipped one from which it differs
    in its method alone, so that the two may be compared."""
    folder = Path(str(package.__file__)).parent
    found = [PackageCheck("imports", partial(_imports, folder))]
    if hasattr(package, "register_methods"):
        found.append(PackageCheck("methods-have-recipes", partial(_covered, package, folder)))
    trained: set[str] = set()
    for name, path in _recipes(folder).items():
        method = _read(path)["method"]["name"]
        tries = {
            "is-found": partial(_is_found, name, path),
            "says-all": partial(_says_all, path, unstated or {}),
            "takes-steps": partial(_takes_steps, path, overrides),
        }
        if name in (siblings or {}):
            tries["has-a-sibling"] = partial(_differs, path, (siblings or {})[name])
        for law, tried in tries.items():
            can_wait = law == "takes-steps" and method in trained
            found.append(PackageCheck(f"{name}-{law}", tried, can_wait))
        trained.add(method)
    return found


def _recipes(folder: Path) -> dict[str, Path]:
    files = sorted((folder / "recipes").rglob("*.yaml"))
    return {path.relative_to(folder / "recipes").with_suffix("").as_posix(): path for path in files}


def _read(path: Path) -> dict[str, Any]:
    blocks: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return blocks


def _imports(folder: Path) -> None:
    for path in sorted(folder.rglob("*.py")):
        for module in _imported(path):
            allowed = module in _ROOMS or module.startswith("sslkit.nn.")
            assert allowed, f"{path.name} imports {module}; what plugins may import: {_ROOMS}"


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] == "sslkit")


def _covered(package: ModuleType, folder: Path) -> None:
    methods = {str(load_recipe(path).method.name) for path in _recipes(folder).values()}
    missing = set(package.register_methods()) - methods
    assert not missing, f"no recipe trains {sorted(missing)}"


def _is_found(name: str, path: Path) -> None:
    shipped = shipped_recipes().get(name)
    assert shipped is not None, f"`sslkit recipes list` does not have {name}"
    assert shipped.samefile(path), f"{name} is found at {shipped}, not at {path}"


def _says_all(path: Path, unstated: Mapping[str, Any]) -> None:
    stated, fields = _read(path)["method"], load_recipe(path).method.dump()
    silent = {
        field: value
        for field, value in fields.items()
        if field not in stated and not (field in unstated and unstated[field] == value)
    }
    assert not silent, f"{path.name} leaves fields of its method to their defaults: {silent}"


def _takes_steps(path: Path, overrides: Callable[[Mapping[str, Any]], Sequence[str]]) -> None:
    given = [*_TWO_STEPS, *overrides(_read(path))]
    with tempfile.TemporaryDirectory() as runs:
        result = start(path, [*given, f"runs_dir={runs}"], display=Silent())
    assert result.status == "finished", f"{path.name}: the run {result.status}"
    loss = result.metrics["train/loss"]
    assert math.isfinite(loss), f"{path.name}: the loss is {loss}"


def _differs(path: Path, sibling: str) -> None:
    own, other = _read(path), _read(find_recipe(sibling))
    differ = {key for key in own.keys() | other.keys() if own.get(key) != other.get(key)}
    others = differ - {"name", "method", "expect"}
    assert not others, f"{path.name} differs from {sibling} in {sorted(others)} too"
