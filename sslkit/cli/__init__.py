"""The `sslkit` command. Thin: each command imports what it needs and calls the library.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the run
failed or was stopped, 2 the input was wrong."""

from .app import app, main

__all__ = ["app", "main"]
