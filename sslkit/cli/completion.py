"""What the shell offers at a TAB: recipes, run folders, components, overrides.

A TAB has to be answered at once and without a word on the terminal: nothing here imports torch, and
every fault is an empty answer, at which shells offer files."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from sslkit.environment_variables import (
    COMP_CWORD,
    COMP_WORDS,
    SSLKIT_COMPLETE,
    TYPER_COMPLETE_ARGS,
    TYPER_COMPLETE_FISH_ACTION,
)

_BREAKS = ("=", ":")
"""bash takes what stands between these for words of their own."""
_GO_ON = ("=", ".", "/", ":")
"""A word with such an end goes on: no space is to follow it."""
_MOST_RUNS = 50
_RECIPES = ("recipe", "source", "inputs", "recipes")
_RUNS = ("resume", "run", "what", "fork")
"""Parameters of commands that name a recipe, or a run folder, which has one."""


def is_asked() -> bool:
    """Whether this process is to answer a TAB."""
    return bool(SSLKIT_COMPLETE.text())


def answer(app: Callable[..., Any]) -> NoReturn:
    """Answers a TAB of the shell that has started this process, and ends it."""
    shell, typed = SSLKIT_COMPLETE.text(), ""
    out = io.StringIO()
    code: Any = 1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            if shell == "complete_bash":
                typed = _join_words()
            if shell == "complete_zsh":  # in lines of a word and its help, as fish has them
                SSLKIT_COMPLETE.set("complete_fish")
                TYPER_COMPLETE_FISH_ACTION.set("get-args")
            app([], prog_name="sslkit")
        except SystemExit as done:
            code = done.code
        except BaseException:  # also what a plugin raises while it is imported
            out = io.StringIO()
    lines = [line for line in out.getvalue().splitlines() if line]
    if shell in ("complete_zsh", "complete_fish"):
        lines = [_option_before(TYPER_COMPLETE_ARGS.text() or "") + line for line in lines]
    lines = [line.removeprefix(typed) for line in lines]
    print(_zsh_code(lines) if shell == "complete_zsh" else "\n".join(lines))
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _option_before(line: str) -> str:
    """`--device=` where the last word of a line is `--device=c`: what its values come without."""
    word = line.rpartition(" ")[2]
    name, equals, _ = word.partition("=")
    return f"{name}=" if equals and name.startswith("--") else ""


def _zsh_code(lines: Sequence[str]) -> str:
    """What zsh is to evaluate. Its own `_describe`, which typer would have called, fills in what
    words have in common in their middle, too."""
    if not lines:
        return "_files"
    words, helps = zip(*(line.partition("\t")[::2] for line in lines), strict=True)
    code = []
    for suffix, chosen in (("-S ''", True), ("", False)):
        listed = [
            (word, f"{word}  -- {about}" if about else word)
            for word, about in zip(words, helps, strict=True)
            if word.endswith(_GO_ON) is chosen
        ]
        if listed:
            given, shown = (" ".join(map(shlex.quote, each)) for each in zip(*listed, strict=True))
            layout = "-l" if any(helps) else ""
            code.append(f"w=({given}); d=({shown}); compadd -Q {suffix} {layout} -d d -a w")
    return f"local -a w d; {'; '.join(code)}"


def _join_words() -> str:
    """Puts words together that bash has cut at `=` and `:`. Returns what of the last one bash takes
    for earlier words, and wants to have no answer to."""
    words = (COMP_WORDS.text() or "").split("\n")
    last = COMP_CWORD.number() or 0
    words = [*words, ""][: last + 1]
    joined: list[str] = []
    for word in words:
        if joined and (word.startswith(_BREAKS) or joined[-1].endswith(_BREAKS)):
            joined[-1] += word
        else:
            joined.append(word)
    COMP_WORDS.set("\n".join(joined))
    COMP_CWORD.set(str(len(joined) - 1))
    own = "" if words[-1].startswith(_BREAKS) else words[-1]
    return joined[-1][: len(joined[-1]) - len(own)]


def complete_shipped_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Shipped recipes."""
    from sslkit.host.recipe_files import shipped_recipes
    from sslkit.report.listing import about

    from .recipe_fields import first_sentence

    shipped = [(name, first_sentence(about(path))) for name, path in shipped_recipes().items()]
    return [each for each in shipped if each[0].startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Shipped recipes, and files."""
    from sslkit.host.recipe_files import RECIPE_SUFFIXES

    files = _quietly(
        lambda typed: [(each, "") for each in _files(typed, RECIPE_SUFFIXES)], incomplete
    )
    return complete_shipped_recipe(incomplete) + files


def _files(incomplete: str, suffixes: Sequence[str]) -> list[str]:
    """Files with a suffix, and folders; where there is one folder alone, what it holds."""
    from .recipe_fields import TYPEABLE

    folder, slash, start = incomplete.rpartition("/")
    found = [
        f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
        for path in sorted(Path(f"{folder}{slash}" or ".").iterdir())
        if path.name.startswith(start)
        and TYPEABLE.fullmatch(path.name)
        and (start or not path.name.startswith("."))
        and (path.is_dir() or path.suffix in suffixes)
    ]
    if len(found) == 1 and found[0].endswith("/"):
        return _files(found[0], suffixes)
    return found


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Run folders, the newest first: those in `runs`, or in the folder that is being typed."""
    from sslkit.runs.folder import RunFolder

    folder = incomplete.rpartition("/")[0] if "/" in incomplete else "runs"
    found = [
        path
        for path in Path(folder).iterdir()
        if f"{folder}/{path.name}".startswith(incomplete) and RunFolder(path).recipe.is_file()
    ]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST_RUNS]
    return [(f"{folder}/{path.name}", "") for path in newest]


def complete_resume(incomplete: str) -> list[tuple[str, str]]:
    """`auto`, and run folders."""
    auto = [("auto", "the newest unfinished run")] if "auto".startswith(incomplete) else []
    return [*auto, *(_quietly(complete_run, incomplete))]


def complete_run_or_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Run folders and recipes."""
    return _quietly(complete_run, incomplete) + _quietly(complete_recipe, incomplete)


def _quietly(
    complete: Callable[[str], list[tuple[str, str]]], incomplete: str
) -> list[tuple[str, str]]:
    try:
        return complete(incomplete)
    except OSError:  # there is no such folder
        return []


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of components."""
    from sslkit.host.plugins import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def complete_component(incomplete: str) -> list[tuple[str, str]]:
    """Names of components; `kind:name` once a kind is typed, or where kinds share a name."""
    from sslkit.host.plugins import KINDS, load_plugins

    registry = load_plugins().registry
    named = [(kind, name) for kind in KINDS for name in registry.names(kind)]
    plain = [name for _, name in named]
    words = [
        (name if plain.count(name) == 1 and ":" not in incomplete else f"{kind}:{name}", kind)
        for kind, name in named
    ]
    return [each for each in words if each[0].startswith(incomplete)]


def complete_evaluators(incomplete: str) -> list[str]:
    """Names of evaluators, between commas."""
    from sslkit.host.plugins import load_plugins

    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    names = load_plugins().registry.names("evaluator")
    found = [name for name in names if name.startswith(last) and name not in given]
    return [f"{before}{comma}{name}" for name in found]


def one_of_words(*words: str) -> Callable[[str], list[str]]:
    """The completion of an option with few values."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def complete_override(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Paths of fields of the recipe that the line names, and their values."""
    from sslkit.host.schema_cache import make_schema_in_background, schema_at_hand

    from .recipe_fields import complete_path, overridden

    schema, is_current = schema_at_hand()
    if not is_current:
        make_schema_in_background()
    if schema is None:
        return []
    given = _given(ctx)
    tree = overridden(_recipe(given), given.get("override") or [])
    return complete_path(schema, tree, incomplete)


def complete_field(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Fields of the component that the line names."""
    from sslkit.host.plugins import KINDS, load_plugins
    from sslkit.host.schema_cache import schema_at_hand

    from .recipe_fields import complete_component_path

    schema, _ = schema_at_hand()
    kind, _, name = str(_given(ctx).get("name") or "").rpartition(":")
    registry = load_plugins().registry
    kinds = [kind] if kind else [each for each in KINDS if name in registry.names(each)]
    words = [
        word
        for each in kinds
        for word in complete_component_path(schema or {}, each, name, incomplete)
    ]
    return [(word, about) for word, about in words if not word.startswith("name=")]


def _given(ctx: typer.Context) -> dict[str, Any]:
    """The parameters on the line. Those of `ctx` are lost where its last word is an option that
    still waits for its value."""
    if COMP_WORDS.text() is not None:
        words = (COMP_WORDS.text() or "").split("\n")[: COMP_CWORD.number() or 0]
    else:
        line = TYPER_COMPLETE_ARGS.text() or ""
        words = line.split()[: None if line.endswith(" ") else -1]
    words = [word.strip("'\"") for word in words[len(ctx.command_path.split()) :]]
    words = words[:-1] if words and words[-1].startswith("-") else words
    made = ctx.command.make_context(ctx.info_name, words, resilient_parsing=True)
    return made.params


def _recipe(given: dict[str, Any]) -> Any:
    """The content of the recipe that a line names; nothing where it names none that can be read."""
    import yaml

    from sslkit.errors import SSLKitError
    from sslkit.host.recipe_files import find_recipe, read_recipe_text
    from sslkit.runs.folder import RunFolder

    try:
        for name in (*_RECIPES, *_RUNS):
            first = given.get(name)
            first = first[0] if isinstance(first, list | tuple) and first else first
            if first:
                folder = Path(str(first))
                path = RunFolder(folder).recipe if folder.is_dir() else find_recipe(str(first))
                tree = yaml.safe_load(read_recipe_text(path))
                return tree if isinstance(tree, dict) else {}
    except (SSLKitError, OSError, yaml.YAMLError):
        return {}
    return {}
