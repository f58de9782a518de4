"""Imports what the commands import, so that forked children need not.

Which modules these are, a child finds out by running the commands: the process that later forks
never runs one, and so has no threads, connections or caches to hand down.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from .sandbox import call_sslkit, prepare_parent, run
from .stock import RECIPE, TRACKED

ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg", "MLFLOW_TRACKING_URI": "", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip
"""Set before torch is imported: a pool of threads does not survive a fork."""


def import_everything() -> None:
    """Imports all modules that a tracked run imports."""
    import torch

    import sslkit.cli  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        (work / "tiny.yaml").write_text(RECIPE)
        names = Path(folder) / "names"

        def call(arguments: list[str]) -> None:
            try:
                call_sslkit(arguments)
            finally:
                names.write_text("\n".join(sys.modules))

        run(Path(folder), ["run", "tiny.yaml", "-o", TRACKED], call)
        for name in names.read_text().splitlines():
            if name not in sys.modules and not name.startswith("__"):
                with suppress(Exception):  # made by another module, not by an import
                    importlib.import_module(name)
    prepare_parent()


def one_thread() -> None:
    """Starts this program again with `ONE_THREAD`, unless it is set already."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ONE_THREAD})  # noqa: S606
