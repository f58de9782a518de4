"""The laws about the source itself: what may import what, and that the core names no method."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslkit.plugins import load_plugins

PACKAGE = Path(__file__).parents[1] / "sslkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("cli", "__main__"),
    ("comparison",),
    ("runs", "plan", "replay", "embedding", "evaluations", "export"),
    ("saved_runs", "batch_statistics"),
    ("report",),
    ("experiment",),
    ("suites",),
    ("stores",),
    ("engine", "tracking", "data"),
    ("evaluation",),
    ("recipe",),
    ("recipe_files",),
    ("plugins",),
    ("registry", "plugin_errors"),
    ("interfaces", "nn", "randomness"),
    ("errors", "files", "hookspecs"),
)
APART = next(names for names in LAYERS if "engine" in names)
"""Top may import below; engine, tracking and data do not import one another."""

AUTHORS_MAY_IMPORT = {"", "interfaces", "nn", "errors", "files", "randomness", "builtin"}


def imports(path: Path) -> Iterator[str]:
    """Modules of sslkit that a module imports, without those for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    package = ".".join(("sslkit", *path.relative_to(PACKAGE).parts[:-1]))
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("sslkit"))
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = f"{start}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            if module == "sslkit" or (node.level and not node.module):
                yield from (f"{module}.{name.name}" for name in node.names)
            elif module.startswith("sslkit."):
                yield module


def part(module: str) -> str:
    """`sslkit.engine.loop` -> `engine`."""
    words = module.split(".")
    return words[1] if len(words) > 1 else ""


def layer(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def module_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_rule(path: Path) -> None:
    own = module_part(path)
    if own in ("builtin", "__init__"):
        return
    mine = layer(own)
    assert mine is not None, f"{own} has no layer: add it to LAYERS"
    for module in imports(path):
        other = part(module)
        assert other != "builtin", f"{path.name} imports {module}: nobody imports builtin"
        theirs = layer(other)
        if theirs is not None and other != own:
            assert (
                theirs > mine
                or {own, other} <= {"interfaces", "nn", "randomness"}
                or (theirs == mine and own not in APART)
            ), f"{path.name} ({own}) imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "builtin").rglob("*.py")), ids=lambda p: p.name)
def test_builtins_import_what_any_plugin_may(path: Path) -> None:
    public = {"hookimpl", "__version__"}
    for module in imports(path):
        name = part(module)
        assert name in AUTHORS_MAY_IMPORT or name in public, f"{path.name} imports {module}"


def test_core_names_no_method() -> None:
    """No text in the core is the name of an installed method."""
    methods = set(load_plugins().registry.names("method"))
    assert "simclr" in methods
    for path in MODULES:
        if module_part(path) != "builtin":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not texts & methods, path


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
