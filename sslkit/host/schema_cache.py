"""The JSON Schema of recipes as it was last made for what is installed, for whoever cannot wait the
seconds that importing every component takes: a TAB in a shell, a copy of a recipe.

It lies in `~/.cache/sslkit`, one file for an environment. Its name holds a digest of what is
installed, files of packages that are being edited included, so that an old one is known as such.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslkit.environment_variables import SSLKIT_COMPLETE, XDG_CACHE_HOME
from sslkit.files import read_json, write_atomic

from .plugins import installed_modules

MOST_BYTES = 32 << 20
_PATIENCE_S = 120.0
"""So long a schema may take to be made before another attempt."""


def schema_at_hand() -> tuple[dict[str, Any] | None, bool]:
    """The schema that was last made here, None where none was, and whether it is that of what is
    installed now. Never raises because of the file."""
    current = _file()
    made = sorted(current.parent.glob(f"{_environment()}-*.json"), key=_age)
    for path in [current, *made]:
        try:
            found = read_json(path, MOST_BYTES)
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found, path == current
    return None, False


def title_of(path: Path) -> Any:
    """The title of the schema in a file; None for what is no schema, or cannot be read."""
    try:
        found = read_json(path, MOST_BYTES)
    except (OSError, ValueError):
        return None
    return found.get("title") if isinstance(found, dict) else None


def keep_schema(text: str) -> None:
    """Keeps a schema that was made for what is installed. One that cannot be kept is not."""
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        others = set(path.parent.glob(f"{_environment()}-*.json")) - {path}
        write_atomic(path, text)
        for other in others:
            other.unlink(missing_ok=True)
    except OSError:
        return


def make_schema_in_background() -> None:
    """Starts a process that makes the schema and keeps it, unless one has just been started."""
    mark = _file().parent / f"{_environment()}.making"
    mark.parent.mkdir(parents=True, exist_ok=True)
    if mark.exists() and time.time() - mark.stat().st_mtime < _PATIENCE_S:
        return
    mark.touch()
    subprocess.Popen(
        [sys.executable, "-P", "-m", "sslkit", "schema"],  # -P: nothing of the working folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != SSLKIT_COMPLETE.name},
    )


def _file() -> Path:
    home = XDG_CACHE_HOME.text() or str(Path("~/.cache").expanduser())
    return Path(home) / "sslkit" / f"{_environment()}-{_installed()}.json"


def _environment() -> str:
    """What tells environments of one user apart."""
    return f"schema-{_digest([sys.prefix, str(Path(__file__).parents[1])])[:8]}"


def _installed() -> str:
    """A digest of every module of every plugin, and when its files were last written."""
    modules = installed_modules()
    packages = sorted({"sslkit", *(module.partition(".")[0] for _, module in modules)})
    return _digest([repr(modules), *(line for name in packages for line in _files(name))])[:16]


def _files(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    origin = [spec.origin] if spec and spec.origin else []
    for folder in (spec and spec.submodule_search_locations) or ():
        for inside, folders, names in os.walk(folder):
            folders.sort()
            origin += [f"{inside}/{name}" for name in sorted(names) if name.endswith(".py")]
    for path in origin:
        yield f"{path} {Path(path).stat().st_mtime_ns}"


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _age(path: Path) -> float:
    return -path.stat().st_mtime
