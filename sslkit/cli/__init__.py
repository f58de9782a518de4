"""The `sslkit` command: a thin file for each command, which reads arguments, calls a workflow and
prints what it returns. Results go to standard output, everything else to standard error. Exit
codes: 0 done, 1 the run failed or was stopped, 2 the input was wrong.

Not here: what commands do (`workflows`), and what their results look like (`report`)."""

from .app import app, main

__all__ = ["app", "main"]
