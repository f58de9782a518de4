"""Errors a user can cause: one line each, saying where, what was given and what to do."""

from __future__ import annotations

import re

_LOGIN = re.compile(
    r"(://)(?!/)(?:[^\s'\"]*|[^\s'\"/:]*:(?:(?!: )[^'\"\n])*)(@|%40)", re.IGNORECASE
)
"""What stands before the @ of a URI. A file's (`sqlite:////data/me@work`) has no login."""
_FIELDS = re.compile(r"(://[^\s'\"?#]*[?#])[^\s'\"]+?(?=:?(?:[\s'\"]|$))")
"""The fields of a URI, which may be a token."""


_REASON = 200
"""Characters that the message of somebody else's exception takes in a line of ours."""
_LONGEST = 1500
"""Characters of a line that are shown: a name in a hostile file can be as long as the file."""


def hide_logins(text: str) -> str:
    """The text with `***` for the logins of its URIs and for their fields."""
    return _FIELDS.sub(r"\1***", _LOGIN.sub(r"\1***\2", text))


def printable(text: str) -> str:
    """The text with control characters, which names and contents of files may hold, written as
    escapes: they would move the cursor of a terminal, or colour what follows. Lines stay lines,
    and end after about a screen."""
    return "\n".join(
        "".join(char if char.isprintable() else repr(char)[1:-1] for char in _cut(line))
        for line in text.split("\n")
    )


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ... ({len(line):,} characters)"


def message_of(error: BaseException, most: int = _REASON) -> str:
    """What an exception says, for the middle of a line: without logins, cut where it is long; its
    type where it says nothing, or cannot."""
    return _shortened(_said(error) or type(error).__name__, most)


def first_line_of(error: BaseException, most: int = _REASON) -> str:
    """The first line of what an exception says, like `message_of`: for libraries that put a
    picture of the input, or advice, below it."""
    return _shortened(_said(error, first=True) or type(error).__name__, most)


def failure_of(error: BaseException, most: int = _REASON) -> str:
    """`message_of` behind the type of the exception: for what was not foreseen."""
    kind, said = type(error).__name__, _said(error)
    return _shortened(f"{kind}: {said}" if said else kind, most)


def _said(error: BaseException, *, first: bool = False) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an exception of a plugin that cannot even be printed
        return ""
    return hide_logins(" ".join(" ".join(lines[:1] if first else lines).split()))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


class SSLKitError(Exception):
    """Base of every error that is reported without a traceback. Logins in URIs are not shown, and
    control characters are shown as escapes."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(hide_logins(message)))


class RecipeError(SSLKitError):
    """The recipe, an override or a command-line argument is wrong. One line per problem."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(printable(hide_logins(problem)) for problem in problems)
        super().__init__("\n".join(problems))


class PluginError(SSLKitError):
    """A plugin that the recipe needs is missing, broken or ambiguous."""

    exit_code = 2


class DataError(SSLKitError):
    """The data cannot be read, or too much of it is damaged."""


class CheckpointError(SSLKitError):
    """A checkpoint is missing, damaged, or belongs to a different recipe."""

    exit_code = 2


class TrainingError(SSLKitError):
    """Training cannot go on, for example because the loss is not finite."""


class RankError(SSLKitError):
    """Another of the processes that train together has ended, or does not come."""

    def __init__(self, message: str = "", *, said: bool = False, exit_code: int = 1) -> None:
        """said: whether another process tells the user."""
        super().__init__(message)
        self.said = said
        self.exit_code = exit_code


class RunFolderError(SSLKitError):
    """A run folder is missing, cannot be written, or belongs to another running process."""

    exit_code = 2


class TrackingError(SSLKitError):
    """The tracking service could not be reached when that was the task (`sync`)."""


class ExportError(SSLKitError):
    """An encoder cannot be exported in this format, or the export is not equal to it."""
