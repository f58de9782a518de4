"""What the import of a plugin may do, and of the module with its hooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslkit import installed_components
from sslkit.api import ComponentConfig, Loss, LossInput
from sslkit.testing import checks, interpreters
from tests.host.plugin_distributions import write_distribution


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    made = ("seeds_at_import", "prints_at_import", "decorates_at_import", "outer_library")
    for name in (*made, "inner_library", "listed_hooks", "listed_loss"):
        sys.modules.pop(name, None)


LOSS = """
from sslkit.api import Loss


class Mine(Loss):
    def forward(self, inputs):
        return (inputs.views[0] - inputs.views[1]).square().mean()
"""


@pytest.mark.slow  # starts an interpreter
@pytest.mark.parametrize(
    ("name", "line", "seen"),
    [
        ("seeds_at_import", "import torch; torch.manual_seed(0)", "torch's random numbers"),
        ("prints_at_import", "print('hello')", "prints 'hello'"),
    ],
)
def test_importing_must_change_nothing(
    module_folder: Path, name: str, line: str, seen: str
) -> None:
    (module_folder / f"{name}.py").write_text(f"{line}\n{LOSS}")
    cls = getattr(__import__(name), "Mine")  # noqa: B009
    (check,) = [c for c in checks(cls) if str(c) == "importing-it-changes-nothing"]
    assert check.outcome().status == "failed"
    assert seen in check.outcome().text


@pytest.mark.slow  # starts an interpreter
def test_the_library_through_which_an_import_changes_something_is_named(
    module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_PATH_X", "0")  # as it was before, once the test is over
    inner = 'import os; os.environ["LIBRARY_PATH_X"] = "1"'
    (module_folder / "inner_library.py").write_text(inner)
    (module_folder / "outer_library.py").write_text("import inner_library")
    (module_folder / "seeds_at_import.py").write_text(f"import outer_library\n{LOSS}")
    cls = getattr(__import__("seeds_at_import"), "Mine")  # noqa: B009
    (check,) = [c for c in checks(cls) if str(c) == "importing-it-changes-nothing"]
    assert check.outcome().text == (
        "importing seeds_at_import changes environment variables (LIBRARY_PATH_X) through its "
        "import of inner_library"
    )


@pytest.mark.slow  # starts an interpreter
def test_a_decorator_of_torch_is_no_change(
    module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that imports torch's compiler, which then sets a variable of its own."""
    variables = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    monkeypatch.setattr(interpreters, "_first_variables", lambda: variables)
    decorated = "import torch\n@torch.compiler.disable\ndef eager(): pass"
    (module_folder / "decorates_at_import.py").write_text(f"{decorated}\n{LOSS}")
    cls = getattr(__import__("decorates_at_import"), "Mine")  # noqa: B009
    (check,) = [c for c in checks(cls) if str(c) == "importing-it-changes-nothing"]
    assert (check.outcome().status, check.outcome().text) == ("passed", "")


@pytest.mark.slow  # starts an interpreter
@pytest.mark.parametrize(("imported", "status"), [("json", "passed"), ("listed_loss", "failed")])
def test_a_hook_module_must_not_import_torch(
    module_folder: Path, imported: str, status: str
) -> None:
    hooks = f"""
        import {imported}
        from sslkit import hookimpl

        @hookimpl
        def register_losses():
            return {{"mine": "listed_loss:Mine"}}
        """
    files = {"listed_hooks.py": hooks, "listed_loss.py": LOSS}
    write_distribution(module_folder, "listed", files, "mine = listed_hooks")
    installed_components.cache_clear()  # which a process reads once
    try:
        (check,) = [c for c in checks("loss:mine") if str(c) == "listing-it-imports-no-torch"]
        assert check.outcome().status == status
    finally:
        installed_components.cache_clear()
    assert ("imports torch" in check.outcome().text) is (status == "failed")


def test_a_class_of_a_notebook_needs_no_file() -> None:
    class Mine(Loss):
        """Of a cell."""

        class Config(ComponentConfig):
            weight: float = 1.0
            """Weight."""

        def forward(self, inputs: LossInput) -> object:  # type: ignore[override]
            return (inputs.views[0] - inputs.views[1]).square().mean()

    Mine.__module__ = "__main__"
    (check,) = [c for c in checks(Mine) if str(c) == "importing-it-changes-nothing"]
    assert check.outcome().status == "untried"
