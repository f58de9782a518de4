"""The command line as a whole: every command under its name, and how errors end."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from sslkit import __version__
from sslkit.errors import RankError, SSLKitError, printable
from sslkit.host.plugin_errors import describe_failure

from . import (
    compare,
    completion,
    conformance,
    doctor,
    embed,
    evaluate,
    export,
    new_plugin,
    pack,
    plan,
    plugins,
    recipes,
    reproduce,
    run,
    runs,
    schema,
    slurm,
    sync,
    ui,
    validate,
    verify,
)
from .options import expand_home
from .standard_streams import make_streams_robust, show_warnings_in_one_line

app = typer.Typer(
    name="sslkit",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--debug, anywhere on the line, shows the traceback of an error.",
)
plugins_app = typer.Typer(no_args_is_help=True, help="What is installed, and what is broken.")
runs_app = typer.Typer(no_args_is_help=True, help="What lies in the folders of runs.")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the packages.")

_COMMANDS: dict[typer.Typer, dict[str, Callable[..., None]]] = {
    app: {
        "run": run.run,
        "slurm": slurm.slurm,
        "plan": plan.plan,
        "validate": validate.validate,
        "eval": evaluate.evaluate,
        "compare": compare.compare,
        "verify": verify.verify,
        "reproduce": reproduce.reproduce,
        "embed": embed.embed,
        "export": export.export,
        "pack": pack.pack,
        "schema": schema.schema,
        "sync": sync.sync,
        "ui": ui.ui,
        "doctor": doctor.doctor,
    },
    plugins_app: {
        "list": plugins.plugins_list,
        "show": plugins.plugins_show,
        "check": conformance.plugins_check,
        "new": new_plugin.plugins_new,
    },
    runs_app: {
        "list": runs.runs_list,
        "show": runs.runs_show,
        "best": runs.runs_best,
        "clean": runs.runs_clean,
    },
    recipes_app: {"list": recipes.recipes_list, "copy": recipes.recipes_copy},
}
"""In the order of `--help`."""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, in which a plugin that calls `sys.exit`, or raises KeyboardInterrupt where
    nobody pressed a key, is an error like any other."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        pressed = False

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal pressed
            pressed = True
            raise KeyboardInterrupt

        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
            threading.current_thread() is threading.main_thread()
        )
        if ours:
            signal.signal(signal.SIGINT, note)
        try:
            command(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) and (pressed or not ours):
                raise
            raise SSLKitError(
                f"{describe_failure(error)}; a component must raise an error instead"
            ) from error
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    return guarded


for _group, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        _group.command(name=_name)(_guarded(_command))
app.add_typer(plugins_app, name="plugins")
app.add_typer(runs_app, name="runs")
app.add_typer(recipes_app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sslkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Self-supervised learning on images, as an experiment that a recipe describes."""


_TyperError: Any = typer.BadParameter.__mro__[2]
"""What typer raises for a command line that it cannot read. Where its class lives differs between
releases; a public one derives from it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. arguments: in place of those of the process, whose streams are then left
    as they are."""
    if arguments is None:
        make_streams_robust()
        if completion.is_asked():
            completion.answer(app)
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [expand_home(word) for word in words if word != "--debug"] or ["--help"]
    show_warnings_in_one_line()
    try:
        try:
            code = app(words, prog_name="sslkit", standalone_mode=False)
        finally:
            sys.stdout.flush()  # what cannot be written is said here, not by the interpreter
    except _TyperError as error:
        if error.ctx is not None and error.format_message() == error.ctx.get_help():
            print(error.format_message(), file=sys.stderr)  # a group that was given no command
            sys.exit(error.exit_code)
        _fail(_usage_problem(error, words), error.exit_code)
    except typer.Abort:
        _fail("stopped at a question", 1)
    except RankError as error:
        if debug and not error.said:
            raise
        _leave_ranks(error)
    except SSLKitError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:  # a full disk, a folder that cannot be written
        if debug:
            raise
        _fail(str(error), 1)
    except Exception as error:  # a plugin's, or ours: one line, and the rest on request
        if debug:
            raise
        _fail(f"{describe_failure(error)}. The same command with --debug shows the traceback", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_problem(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the words of a command line, in one line: where, what was given, what is
    valid and where the help is."""
    message = " ".join(error.format_message().split()).removesuffix(".")
    message = re.sub(r"\.? (\(?)[Dd]id you mean ", r", \1did you mean ", message)
    message = message.replace("Input should", "should").replace("argument(s)", "argument")
    for option in getattr(getattr(error, "param", None), "opts", ()):
        given = repr(words[words.index(option) + 1][:60]) if option in words[:-1] else ""
        if given not in message:
            message += f", got {given}"
    message = f"{message[:1].lower()}{message[1:]}"
    if error.ctx is None:
        return message
    command = error.ctx.command_path
    return f"{command}: {message}{'' if message.endswith('?') else '.'} See: {command} --help"


def _leave_ranks(error: RankError) -> NoReturn:
    """Ends one of several processes at once: what the interpreter would still wait for may hang,
    or abort, where another rank is gone."""
    if not error.said:
        _say(str(error))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(error.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    """Ends with a line on standard error for each problem."""
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    print("\n".join(f"error: {line}" for line in printable(message).splitlines()), file=sys.stderr)
