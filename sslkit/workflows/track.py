"""The pages of a tracker, and sending it what it missed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from sslkit.api import resolve_component
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.recipe import find_recipe, load_recipe
from sslkit.runs.evaluations import recipe_file
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import SyncResult, sync


def open_ui(recipe: str | None, host: str, port: int) -> int:
    """Runs the pages of the tracker of a recipe or run folder (default: a default MLflow store),
    until they are closed. Returns the exit code."""
    registry = load_plugins().registry
    if recipe is None:
        slot = resolve_component(registry, "tracker", {"name": "mlflow"})
    else:
        path = Path(recipe)
        slot = load_recipe(
            RunFolder.open(path).recipe if path.is_dir() else find_recipe(recipe)
        ).tracking
    command = slot.build().ui_command(host, port)
    if command is None:
        raise RecipeError(f"tracking: '{slot.name}' has no pages to open")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecipeError(
                f"--host {host} --port {port}: {error.strerror}; choose another --port"
            ) from error
    pages = subprocess.Popen(command, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return pages.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        with suppress(ProcessLookupError):
            os.killpg(pages.pid, signal.SIGTERM)  # the server has workers of its own


def sync_run(run_dir: Path) -> SyncResult:
    """Sends a run's tracker what it missed. Raises RunFolderError and TrackingError."""
    with RunFolder.open(run_dir, write=True) as folder:
        return sync(folder, load_recipe(recipe_file(folder)).tracking.build())
