"""What authors and programs may build on changes only on purpose."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sslkit
from sslkit.deprecation import INTERFACE_VERSION, PUBLIC_MODULES
from tests.host import public_surface
from tests.host.public_surface import advice, changes, only_more_parameters, surface

REPOSITORY = Path(sslkit.__file__).parents[1]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return surface()


def test_the_public_surface_is_the_pinned_one(found: dict[str, str]) -> None:
    """Where this fails it says what to do."""
    said = advice(public_surface.read(), found)
    assert not said, f"\n{said}"


def test_the_pin_is_of_this_interface() -> None:
    assert public_surface.read()["interface"] == str(INTERFACE_VERSION)


def test_the_surface_holds_what_authors_build_on(found: dict[str, str]) -> None:
    assert len(found) > 700
    for name, text in {
        "sslkit.run": "def (recipe: str | Path, overrides: Sequence[str] = ()) -> RunResult",
        "sslkit.api.Loss.forward": "abstract def (self, inputs: LossInput) -> Tensor",
        "sslkit.api.RunFacts.num_images": "field: int",
        "sslkit.api.RunFacts.num_test_images": "field: int | None = None",
        "sslkit.api.EvaluatorConfig.every_epochs": "field: PositiveInt | None = None",
        "sslkit.api.Backbone.num_features": "attribute: int",
        "sslkit.api.StreamReader": "class(SplitReader)",
    }.items():
        assert found[name] == text
    assert any(name.startswith("sslkit.testing.checks") for name in found)
    for name, text in found.items():
        assert "0x" not in text, name
        assert "\n" not in text, name


def test_every_public_module_is_in_the_reference() -> None:
    page = public_surface.PAGE.read_text(encoding="utf-8")
    for name in set(PUBLIC_MODULES) - {"sslkit.api", "sslkit.errors", "sslkit.testing"}:
        assert re.search(rf"^\.\. auto(module|class):: {re.escape(name)}(\.\w+)?$", page, re.M), (
            name
        )


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "plugins").glob("*/src/**/*.py")), ids=lambda path: path.stem
)
def test_the_plugins_of_this_repository_import_what_is_public(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sslkit":
            assert node.module in PUBLIC_MODULES, f"{path}:{node.lineno}"
            pinned = {name.name for name in node.names}
            known = public_surface.names_of(__import__(node.module, fromlist=["x"]))
            assert pinned <= {*known, "api"}, f"{path}:{node.lineno}"


BEFORE = {
    "interface": "2",
    "m.f": "def (a: int, b: str = x, *, c: dict[str, int] = {}) -> int",
    "m.K": "class(ABC)",
    "m.K.go": "abstract def (self, x: Tensor) -> Tensor",
    "m.D": "dataclass()",
    "m.D.a": "field: int",
    "m.N": "= 3",
}


@pytest.mark.parametrize(
    ("name", "text", "is_break"),
    [
        ("m.g", "def (a) -> int", False),
        ("m.f", None, True),
        ("m.f", "def (a: int, b: str = x, *, c: dict[str, int] = {}, d: int = 0) -> int", False),
        ("m.f", "def (a: int, b: str = x, e: int = 0, *, c: dict[str, int] = {}) -> int", False),
        ("m.f", "def (a: int, b: str = x, e: int, *, c: dict[str, int] = {}) -> int", True),
        ("m.f", "def (a: int, e: int = 0, b: str = x, *, c: dict[str, int] = {}) -> int", True),
        ("m.f", "def (a: int, b: str = y, *, c: dict[str, int] = {}) -> int", True),
        ("m.f", "def (a: int, *, b: str = x, c: dict[str, int] = {}) -> int", True),
        ("m.f", "def (a: int, b: str = x) -> int", True),
        ("m.f", "def (a: int, b: str = x, *, c: dict[str, int] = {}) -> str", True),
        ("m.f", "def (a: int, b: str = x, *, c: dict[str, int] = {}, d: int) -> int", True),
        ("m.K.stop", "def (self) -> None", False),
        ("m.K.stop", "abstract def (self) -> None", True),
        ("m.K.go", "def (self, x: Tensor) -> Tensor", True),
        ("m.K", "class(Thing, ABC)", True),
        ("m.D.b", "field: int = 0", False),
        ("m.D.b", "field: int", True),
        ("m.D.a", "field: str", True),
        ("m.D.a", "field: int = 3", False),
        ("m.D.a", "field: str = x", True),
        ("m.N", "= 4", True),
        ("m.Other.b", "field: int", False),
    ],
)
def test_additions_and_breaks_are_told_apart(name: str, text: str | None, is_break: bool) -> None:
    after = {**BEFORE, name: text} if text is not None else {**BEFORE}
    if text is None:
        del after[name]
    additions, breaks = changes(BEFORE, after)  # type: ignore[arg-type]
    assert (len(additions), len(breaks)) == (not is_break, is_break)
    said = advice(BEFORE, after)  # type: ignore[arg-type]
    assert ("docs/howto/interfaces.md" in said) == is_break
    assert ("Additions: rewrite the pin (python -m tests.host.public_surface)" in said) != is_break
    assert name in said


def test_a_break_asks_for_a_number_once() -> None:
    gone = {name: text for name, text in BEFORE.items() if name != "m.f"}
    assert "INTERFACE_VERSION has to grow" in advice(BEFORE, gone)
    assert "INTERFACE_VERSION has to grow" not in advice(BEFORE, {**gone, "interface": "3"})


def test_parameters_with_commas_inside_are_read() -> None:
    old = "def (self, x: tuple[int, ...] = (1, 2), y: Callable[[int], str] | None = None) -> None"
    assert only_more_parameters(old, old)
    assert only_more_parameters(old, old.replace(") -> None", ", z: bool = False) -> None"))
    assert not only_more_parameters(old, old.replace("(1, 2)", "(1, 3)"))
