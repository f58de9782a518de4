"""Finding recipe files: paths, shipped names, and what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken_recipes import GOOD
from plugin_distributions import Install

import sslkit
from sslkit.errors import RecipeError
from sslkit.host.recipe_files import (
    MAX_BYTES,
    copy_recipe,
    find_recipe,
    read_recipe_text,
    shipped_recipes,
)
from sslkit.recipe import load_recipe

CHECKOUT = Path(sslkit.__file__).parent.parent / "recipes"


@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="not a checkout")
def test_the_recipes_of_a_checkout_are_shipped() -> None:
    shipped = shipped_recipes()
    for path in CHECKOUT.rglob("*.yaml"):
        assert shipped[path.relative_to(CHECKOUT).with_suffix("").as_posix()] == path


def test_plugins_ship_recipes(install: Install) -> None:
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_heads(): return {}
    """
    files = {
        "shipper/__init__.py": source,
        "shipper/recipes/shipped.yaml": GOOD,
        "shipper/recipes/deep/er.yml": GOOD,
        "shipper/recipes/readme.txt": "no recipe",
    }
    other = {"other/__init__.py": source, "other/recipes/shipped.yaml": GOOD}
    site = install("a-shipper", files, "s = shipper")
    install("b-other", other, "s = other")
    shipped = shipped_recipes()
    assert shipped["shipped"] == site / "shipper/recipes/shipped.yaml"
    assert shipped["deep/er"] == site / "shipper/recipes/deep/er.yml"
    assert shipped["b-other:shipped"] == site / "other/recipes/shipped.yaml"
    assert not any("readme" in name for name in shipped)
    assert find_recipe("deep/er") == shipped["deep/er"]
    assert find_recipe("deep/er.yaml") == shipped["deep/er"]
    assert load_recipe("shipped").name == "tiny"


def test_a_broken_plugin_ships_its_recipes_too(install: Install) -> None:
    files = {"wreck/__init__.py": "1/0", "wreck/recipes/one.yaml": GOOD}
    install("wreck", files, "w = wreck")
    assert "one" in shipped_recipes()


def test_a_path_wins_over_a_shipped_name(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("ship", {"ship/__init__.py": "", "ship/recipes/mine.yaml": GOOD}, "s = ship")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine").is_absolute()
    Path("mine").write_text(GOOD)
    assert find_recipe("mine") == Path("mine")


def test_a_missing_file_gets_suggestions(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "quik.yaml")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'quik.yaml'}: no such file or shipped recipe, did you")
    assert f"did you mean '{tmp_path / 'quick.yaml'}'?" in message


def test_a_missing_recipe_names_the_broken_plugins_that_may_ship_it(install: Install) -> None:
    install("wreck", {}, "w = wreck_of_nothing")
    with pytest.raises(RecipeError) as error:
        find_recipe("wrecks_own")
    message = str(error.value)
    assert ". Broken plugins that may ship it: w of wreck (ModuleNotFoundError: No mod" in message
    assert "\n" not in message


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"is a folder, expected a recipe file.*a\.yaml"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\x00b", "/no/such/folder/x.yaml"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(name)
    assert len(error.value.problems) == 1
    assert len(str(error.value)) < 1000


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="is larger than 1 MiB"):
        load_recipe(path)


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/zero")
def test_an_endless_file_is_refused() -> None:
    with pytest.raises(RecipeError, match="is larger than 1 MiB"):
        load_recipe("/dev/zero")


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_recipe_text(path) == "name: x\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load_recipe(path)


def test_a_shipped_recipe_is_copied_once(install: Install, tmp_path: Path) -> None:
    install("ship", {"ship/__init__.py": "", "ship/recipes/mine.yaml": GOOD}, "s = ship")
    target = tmp_path / "here"
    target.mkdir()
    assert copy_recipe("mine", target) == target / "mine.yaml"
    line = "# yaml-language-server: $schema=sslkit.schema.json\n"  # shipped without one
    assert (target / "mine.yaml").read_text() == line + GOOD
    for name, where, expected in (
        ("mine", target, "exists already"),
        ("mnie", target, "no such recipe"),
        ("mine", tmp_path / "absent" / "x.yaml", "cannot be written"),
    ):
        with pytest.raises(RecipeError, match=expected):
            copy_recipe(name, where)


def test_listing_recipes_imports_no_torch() -> None:
    code = (
        "import sys; from sslkit.host.recipe_files import shipped_recipes; shipped_recipes();"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
