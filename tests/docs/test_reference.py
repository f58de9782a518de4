"""Every hook, command and field is documented, in the code and on the pages."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import docstrings
import generated_reference as reference
import pytest
from pages import DOCS, all_blocks
from pydantic import BaseModel

import sslkit
from sslkit import api, environment_variables
from sslkit.api import INTERFACES
from sslkit.experiment.description import run_tags
from sslkit.host import hookspecs
from sslkit.host.plugins import HOOK_KINDS, KINDS
from sslkit.recipe import Recipe, load_recipe

PUBLIC_TO_AUTHORS = {"", "api", "nn", "parallel", "randomness", "errors", "testing"}
"""Packages of sslkit whose names plugin authors may use."""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File name -> text of the generated pages."""
    folder = tmp_path_factory.mktemp("reference")
    assert reference.write_reference(folder) == []
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all blocks below it."""
    yield model
    for _, inner in reference.nested_blocks(model):
        yield inner


def test_the_generated_pages_are_in_a_table_of_contents(generated: dict[str, str]) -> None:
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    for page in generated:
        assert f"_generated/{page.removesuffix('.md')}\n" in index


def test_every_name_of_the_api_is_documented_once(generated: dict[str, str]) -> None:
    named = [name for names in reference.api_subjects().values() for name in names]
    assert sorted(named) == sorted(api.__all__)
    for name in named:
        pattern = rf"^\.\. (autoclass|autofunction|py:data):: {name}$"
        assert len(re.findall(pattern, generated["api.md"], re.MULTILINE)) == 1
        value = getattr(api, name)
        assert "  \n" not in generated["api.md"]
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_the_page_of_public_names_lists_the_packages_that_authors_may_import() -> None:
    """And what it documents is there."""
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    table = page.partition("| package | for |")[2].partition("\n\n")[0]
    packages = set(re.findall(r"^\| (?:the modules of )?`sslkit\.?(\w*)`", table, re.MULTILINE))
    assert packages == PUBLIC_TO_AUTHORS
    for kind, address in re.findall(r"^\.\. auto(\w+):: ([\w.]+)$", page, re.MULTILINE):
        module, _, name = address.rpartition(".")
        if kind == "module":
            importlib.import_module(address)
        else:
            assert hasattr(importlib.import_module(module), name), address
        assert not any(part.startswith("_") for part in address.split("."))
    for name in ("run", "load_encoder", "hookimpl", "INTERFACE_VERSION"):
        assert name in sslkit.__all__


def test_every_hook_is_documented(generated: dict[str, str]) -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert hooks == set(HOOK_KINDS)
    for hook in hooks:
        assert inspect.getdoc(getattr(hookspecs, hook))
        assert f"`{hook}()`" in generated["hooks.md"]


def test_every_environment_variable_is_documented(generated: dict[str, str]) -> None:
    for variable in environment_variables.ALL:
        row = f"| `{variable.name}` | {variable.about} |"
        assert row in generated["environment_variables.md"]


def test_every_kind_has_a_page_that_names_its_interface(generated: dict[str, str]) -> None:
    assert {interface.kind for interface in INTERFACES} == set(KINDS)
    for interface in INTERFACES:
        page = generated[f"{reference.PLURALS[interface.kind]}.md"]
        assert f"sslkit.api.{interface.__name__}" in page
        assert reference.paragraph(interface.__doc__) in page


def test_every_command_and_parameter_is_documented(generated: dict[str, str]) -> None:
    commands = reference.commands()
    assert {"sslkit run", "sslkit validate", "sslkit eval", "sslkit plugins list"} <= {
        command.path for command in commands
    }
    for command in commands:
        assert command.help, f"{command.path} has no help"
        assert f"## {command.path}\n" in generated["commands.md"]
        for parameter, text in command.parameters:
            assert text, f"{command.path}: {parameter} has no help"


def test_every_recipe_field_is_documented(generated: dict[str, str]) -> None:
    for model in models(Recipe):
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"
            assert f"| `{name}` |" in generated["recipe.md"]


def test_every_field_of_every_component_is_documented(generated: dict[str, str]) -> None:
    registry = reference.built_in_registry()
    found = list(reference.built_in_components(registry))
    assert len(found) == len(registry.entries())
    for entry, cls in found:
        page = generated[f"{reference.PLURALS[entry.kind]}.md"]
        assert cls.__doc__, f"{cls.__name__} has no docstring"
        section = page.partition(f"## {entry.kind} `{entry.name}`\n")[2].partition("\n## ")[0]
        assert section
        for model in models(cls.Config):
            for name, field in model.model_fields.items():
                assert field.description, f"{cls.__name__}: {name} has no docstring"
                assert f"| `{name}` |" in section


def test_types_and_defaults_read_as_in_a_recipe(generated: dict[str, str]) -> None:
    assert "| any |" not in "".join(generated.values())
    assert "| `lr` | number > 0 | required |" in generated["optimizers.md"]
    assert "| `head` | head block | `{name: mlp}` |" in generated["methods.md"]
    assert (
        "| `blur_sigma` | [number > 0, number > 0] | `[0.1, 2]` |" in generated["augmentations.md"]
    )


def test_the_tags_of_a_run_are_documented() -> None:
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    for tag in run_tags(load_recipe("quickstart")):
        assert f"`{tag}`" in page


def test_the_metrics_of_the_evaluators_are_documented() -> None:
    """Every metric that an evaluator's docstring promises stands on the page of metrics."""
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    for name in ("knn/top1", "knn/mean_per_class", "linear/top1", "few_label/top1_1"):
        assert f"`eval/{name}`" in page
    for name in ("std", "rankme", "alignment", "uniformity"):
        assert f"`collapse/{name}`" in page


def test_the_pages_name_no_command_that_does_not_exist() -> None:
    known = {tuple(command.path.split()[1:]) for command in reference.commands()}
    for block in all_blocks():
        for line in block.text.splitlines() if block.language in ("bash", "console") else ():
            words = line.split()
            if words[:1] == ["sslkit"] and not words[1].startswith("-"):
                assert tuple(words[1:2]) in known or tuple(words[1:3]) in known, (str(block), line)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Uses |w| and a * b, `a | b`."], ["Uses \\|w\\| and a \\* b, `a | b`.", ""]),
        (["| a |", "|---|"], [".. code-block:: text", "", "   | a |", "   |---|", ""]),
        (["Two:", "- one", "- two"], ["Two:", "", "- one", "- two", ""]),
        (["Text.", "", "    x = 1"], ["Text.", "", ".. code-block:: text", "", "       x = 1", ""]),
        (["    x", "", "    y"], [".. code-block:: text", "", "       x", "", "       y", ""]),
    ],
)  # fmt: skip
def test_docstrings_become_restructured_text(lines: list[str], expected: list[str]) -> None:
    assert docstrings.to_restructured_text(lines) == expected


def test_signatures_with_made_defaults_are_read() -> None:
    """Sphinx gives up on the whole signature at `<factory>`, and shows what autodoc wrote."""
    annotations = pytest.importorskip("sphinx.domains.python._annotations")
    environment = SimpleNamespace(
        ref_context={},
        config=SimpleNamespace(
            python_display_short_literal_types=False, python_use_unqualified_type_names=True
        ),
    )
    given = "metrics: ~collections.abc.Mapping[str, float] = <factory>, carry: ~typing.Any = None"
    with pytest.raises(SyntaxError):
        annotations._parse_arglist(given, environment)
    first, second = annotations._parse_arglist(docstrings.readable_signature(given), environment)
    assert "~" not in first.astext() + second.astext()
    assert first.astext().endswith("= ...")


@pytest.mark.slow  # 2 seconds
def test_unchanged_pages_keep_their_time(tmp_path: Path) -> None:
    reference.write_reference(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reference.write_reference(tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
