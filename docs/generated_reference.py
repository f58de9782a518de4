"""The pages of the reference that follow from the code: recipe fields, hooks, commands.

`write_reference` is called by `conf.py` before Sphinx reads the sources. The texts are the
docstrings of the pydantic models, the hooks and the commands, so they cannot fall behind.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated_laws import laws_page
from generated_methods import catalogue_page
from pydantic import BaseModel

from sslkit import api, environment_variables
from sslkit.api import INTERFACES, ScheduledNumber, Slot
from sslkit.errors import PluginError
from sslkit.host import hookspecs
from sslkit.host.field_types import type_words
from sslkit.host.plugins import HOOK_KINDS, load_plugins
from sslkit.host.registry import Entry, Registry
from sslkit.recipe import Recipe

PLURALS = {kind: hook.removeprefix("register_") for hook, kind in HOOK_KINDS.items()}
"""Kind -> its plural, which is the name of its page."""


@dataclass(frozen=True)
class Field:
    """One row of a table of fields."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """One command of the command line; `parameters` are (how to write it, what it does)."""

    path: str
    help: str
    usage: str
    parameters: tuple[tuple[str, str], ...]


def write_reference(folder: Path) -> list[str]:
    """Writes all pages into `folder`, which Sphinx reads; returns what could not be documented.
    Unchanged pages keep their time, so that a second build is incremental."""
    registry = built_in_registry()
    problems = []
    for entry in registry.entries():
        try:
            registry.resolve(entry.kind, entry.name)
        except PluginError as error:
            problems.append(str(error))
    pages = {
        "recipe.md": recipe_page(),
        **{f"{PLURALS[cls.kind]}.md": component_page(registry, cls) for cls in INTERFACES},
        "api.md": api_page(),
        "hooks.md": hooks_page(),
        "commands.md": commands_page(),
        "environment_variables.md": variables_page(),
        "laws.md": laws_page(),
        "catalogue.md": catalogue_page(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return problems


# --- Recipe and components ------------------------------------------------------------------------


def built_in_registry() -> Registry:
    """The components of sslkit itself: the reference does not depend on what else is installed."""
    entries = load_plugins().registry.entries()
    return Registry([entry for entry in entries if entry.distribution == "sslkit"])


def built_in_components(
    registry: Registry, kind: str | None = None
) -> Iterator[tuple[Entry, type[Any]]]:
    """(entry, class) of every built-in component, or of those of a kind, that can be imported."""
    for entry in registry.entries(kind):
        try:
            yield entry, registry.resolve(entry.kind, entry.name).cls
        except PluginError:
            continue


def recipe_page() -> str:
    lines = [
        "# Recipe fields",
        "",
        "A recipe is a YAML file with the fields below. A *component block* names a component and",
        "gives its fields: `loss: {name: nt_xent, temperature: 0.2}`. A dotted path, such as",
        "`method.loss.temperature`, stands for a field in overrides (`-o`), messages and MLflow.",
        "`required` means that the recipe must give the field.",
        "",
        "## Top level",
        "",
        *field_table(Recipe),
    ]
    for path, model in nested_blocks(Recipe):
        lines += ["", f"## {path}", "", paragraph(model.__doc__), "", *field_table(model)]
    return "\n".join(lines) + "\n"


def nested_blocks(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted path, model) of the blocks below a model, components not included."""
    for name, field in model.model_fields.items():
        for found in models_in(field.annotation):
            yield name, found
            yield from ((f"{name}.{path}", inner) for path, inner in nested_blocks(found))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    if getattr(annotation, "__origin__", None) is Slot:
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def component_page(registry: Registry, interface: type[Any]) -> str:
    kind, plural = interface.kind, PLURALS[interface.kind]
    lines = [
        f"# {plural.capitalize()}",
        "",
        f"{paragraph(interface.__doc__)} Interface: {{py:class}}`sslkit.api."
        f"{interface.__name__}`; hook: `register_{plural}`.",
    ]
    for entry, cls in built_in_components(registry, kind):
        lines += [
            "",
            f"({kind}-{entry.name})=",
            f"## {kind} `{entry.name}`",
            "",
            inspect.cleandoc(cls.__doc__ or ""),
            "",
            *field_table(cls.Config),
        ]
        for name, model in nested_blocks(cls.Config):
            lines += ["", f"### `{name}` of `{entry.name}`", "", paragraph(model.__doc__), ""]
            lines += field_table(model, known=cls.Config.model_fields)
    return "\n".join(lines) + "\n"


def fields_of(model: type[BaseModel]) -> list[Field]:
    """The fields of a model, its own first, then those that every component of the kind has."""
    properties = model.model_json_schema()["properties"] if model.model_fields else {}
    own = [name for name in model.model_fields if name in inspect.get_annotations(model)]
    names = own + [name for name in model.model_fields if name not in own]
    return [
        Field(
            name,
            type_words(properties[name], quote="`"),
            default_words(model, name),
            " ".join((model.model_fields[name].description or "").split()),
        )
        for name in names
    ]


def field_table(model: type[BaseModel], known: Container[str] = ()) -> list[str]:
    """A table of the fields of a model; those that are `known` from another table are left out."""
    fields = fields_of(model)
    if not fields:
        return ["No fields."]
    rows = [(f"`{f.name}`", f.type, f.default, f.meaning) for f in fields if f.name not in known]
    lines = table(("field", "type", "default", "meaning"), rows)
    return lines if len(rows) == len(fields) else [*lines, "", "Further fields: as above."]


def default_words(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    return f"`{yaml_words(field.get_default(call_default_factory=True))}`"


def yaml_words(value: Any) -> str:
    """A default as a recipe would write it, on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, ScheduledNumber):
        value = value.dump()
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_words(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(yaml_words, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- What a plugin author implements --------------------------------------------------------------


def api_page() -> str:
    """`sslkit.api` by subject, which are its modules."""
    lines = [
        "# sslkit.api",
        "",
        *(inspect.cleandoc(api.__doc__ or ""), ""),
        "Each heading is a module of `sslkit/api`. Import from `sslkit.api` itself.",
    ]
    for module, names in api_subjects().items():
        documented = importlib.import_module(module)
        lines += [
            "",
            f"## {module.rpartition('.')[2]}",
            "",
            inspect.cleandoc(documented.__doc__ or ""),
        ]
        lines += ["", "```{eval-rst}", ".. currentmodule:: sslkit.api", ""]
        for name in names:
            lines += [*_directive(documented, name), ""]
        lines += ["```"]
    return "\n".join(lines) + "\n"


def api_subjects() -> dict[str, list[str]]:
    """Module -> the names of `sslkit.api` that come from it, in the order of its source."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(inspect.getsource(api)).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            module = f"sslkit.api.{node.module}" if node.level else str(node.module)
            source = inspect.getsource(importlib.import_module(module))
            names = [alias.name for alias in node.names]
            found[module] = sorted(names, key=lambda name: _position(source, name))
    return found


def _position(source: str, name: str) -> int:
    """Where a module defines a name; behind everything where it only imports it."""
    match = re.search(rf"^(class|def) {name}\b|^{name}\b", source, re.MULTILINE)
    return match.start() if match else len(source)


def _directive(module: Any, name: str) -> list[str]:
    """The lines that document one name; constants and aliases with the text below them."""
    value = getattr(module, name)
    if inspect.isclass(value):
        return [f".. autoclass:: {name}"]
    if inspect.isfunction(value):
        return [f".. autofunction:: {name}"]
    return [f".. py:data:: {name}", "", f"   {paragraph(constant_text(module, name))}"]


def constant_text(module: Any, name: str) -> str:
    """The docstring below an assignment."""
    body = ast.parse(inspect.getsource(module)).body
    for node, text in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            return str(text.value.value)
    return ""


# --- Hooks and commands ---------------------------------------------------------------------------


def hooks_page() -> str:
    lines = [
        "# Hooks",
        "",
        inspect.cleandoc(hookspecs.__doc__ or ""),
        "",
        *table(
            ("hook", "kind", "what it registers"),
            [
                (f"`{hook}()`", kind, paragraph(getattr(hookspecs, hook).__doc__))
                for hook, kind in HOOK_KINDS.items()
            ],
        ),
        "",
        "A plugin that breaks a rule of the hooks is listed as broken by `sslkit plugins list`,",
        "with its reason, and registers nothing: a misspelt hook name, a hook that lacks the mark,",
        "a hook wrapper, a value that is not the text `module:Class`, a built-in name. Where two",
        "distributions register one name, recipes write `distribution:name`.",
    ]
    return "\n".join(lines) + "\n"


def commands() -> list[Command]:
    """Every command of the command line, in the order of `--help`, groups left out."""
    import typer

    from sslkit.cli import app

    return list(_commands(typer.main.get_command(app), "sslkit"))


def _commands(command: Any, path: str) -> Iterator[Command]:
    children = getattr(command, "commands", None)
    if children:
        for name, child in children.items():
            yield from _commands(child, f"{path} {name}")
        return
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    options = [parameter for parameter in shown if is_option(parameter)]
    arguments = [parameter for parameter in shown if not is_option(parameter)]
    usage = " ".join([path, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    parameters = [(_argument(p), p.help or "") for p in arguments]
    parameters += [(_option(p), p.help or "") for p in options]
    yield Command(path, inspect.cleandoc(command.help or ""), usage, tuple(parameters))


def is_option(parameter: Any) -> bool:
    """Whether a parameter of a command is an option and not an argument."""
    return bool(parameter.opts) and parameter.opts[0].startswith("-")


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    if getattr(parameter, "is_flag", False):
        return names
    return f"{names} {parameter.metavar or parameter.name.upper()}"


def commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "Results go to standard output, everything else to standard error. Exit codes: 0 done,",
        "1 the run failed or was stopped, 2 the input was wrong ([](../errors.md)). `--debug`,",
        "anywhere on the line, shows the traceback of an error. `-h` or `--help` after any command",
        "shows its options.",
    ]
    for command in commands():
        lines += ["", f"## {command.path}", "", command.help, ""]
        lines += ["```text", command.usage, "```", ""]
        lines += table(
            ("parameter", "meaning"), [(f"`{name}`", text) for name, text in command.parameters]
        )
    return "\n".join(lines) + "\n"


def variables_page() -> str:
    lines = [
        "# Environment variables",
        "",
        "sslkit reads these, and no others, of its own accord. "
        "Libraries that it uses (torch, MLflow, Hugging Face) have their own.",
        "",
    ]
    rows = ((f"`{each.name}`", each.about) for each in environment_variables.ALL)
    return "\n".join([*lines, *table(("Variable", "What it decides"), rows), ""])


# --- Text -----------------------------------------------------------------------------------------


def paragraph(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", text) or " "
