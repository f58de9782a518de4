"""Errors a user can cause: one line each, saying where, what was given and what to do."""

from __future__ import annotations


class SSLKitError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


class RecipeError(SSLKitError):
    """The recipe, an override or a command-line argument is wrong. One line per problem."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
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


class RunFolderError(SSLKitError):
    """A run folder is missing, cannot be written, or belongs to another running process."""

    exit_code = 2


class TrackingError(SSLKitError):
    """The tracking service could not be reached when that was the task (`sync`)."""


class ExportError(SSLKitError):
    """An encoder cannot be exported in this format, or the export is not equal to it."""
