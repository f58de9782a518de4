"""What a process does to the outside, seen by an audit hook (PEP 578).

Python raises an event before it opens, renames or removes a file, connects, or starts a program.
What C libraries open by themselves (Arrow, SQLite after it has connected) raises none; the oracle
looks at the folders beside.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
_CONNECTIONS = {"socket.connect", "socket.sendto", "urllib.Request", "http.client.connect"}
_CHANGES = {
    "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (0, 1),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.utime": (0,),
    "sqlite3.connect": (0,),
}  # fmt: skip
"""Event -> which of its arguments are paths that it changes."""
_FOLLOWING = {"os.truncate", "os.chmod", "os.utime", "sqlite3.connect"}
"""Of these, the ones that change what a link leads to, and not the link."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")
_OWN_PROGRAMS = ("git", "lscpu", "uname", "ldconfig", "nvidia-smi")
"""Programs by which sslkit and torch describe the machine; the files of a stranger name none."""
_FOLLOWED = "encoder.safetensors"
"""Weights may be a link: caches of downloads hold such. They are read as weights or refused."""
SECRET = "secret-outside"  # noqa: S105
"""A name of files that lie beside the folder of an input, and that no input may reach."""


class Fence:
    """Records, from its creation to the end of the process, what happens beyond `folder`."""

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._found: dict[str, None] = {}
        self._busy = False
        sys.addaudithook(self._hear)

    def write(self, path: Path) -> None:
        """Writes what was found, one line each."""
        self._busy = True
        path.write_text("".join(f"{line}\n" for line in self._found), errors="replace")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:  # what this hook itself does
            return
        self._busy = True
        try:
            found = self._judge(event, arguments)
            if found is not None:
                self._found[found.replace("\n", "\\n")[:300]] = None
        except Exception as error:
            self._found[f"the fence failed at {event}: {error!r}"[:300]] = None
        finally:
            self._busy = False

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._opened(*arguments[:3])
        if event in _CHANGES:
            for position in _CHANGES[event]:
                path = arguments[position]
                if isinstance(path, str | bytes | os.PathLike):
                    given = Path.cwd() / os.fsdecode(path)
                    changed = given.parent.resolve() / given.name  # a link itself, not its target
                    if self._is_outside(changed, follow=event in _FOLLOWING):
                        return f"{event} of {os.fsdecode(path)}"
        if event in _CONNECTIONS:
            return f"{event} {arguments[1:]}"
        if event in _PROGRAMS:
            name = os.fsdecode(arguments[0] or arguments[1][0])
            return None if Path(name).name in _OWN_PROGRAMS else f"starts {name}"
        return None

    def _opened(self, path: Any, mode: Any, flags: Any) -> str | None:
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        writes = bool(isinstance(flags, int) and flags & _WRITING)
        if writes and self._is_outside(path):
            return f"writes {os.fsdecode(path)}"
        if os.fsdecode(path).endswith(_FOLLOWED):
            return None
        if SECRET in os.path.realpath(os.fsdecode(path)):
            return f"reads {os.fsdecode(path)}"
        return None

    def _is_outside(self, path: Any, follow: bool = True) -> bool:
        real = os.path.realpath(os.fsdecode(path)) if follow else os.fsdecode(path)
        if real.startswith(_HARMLESS) or "/__pycache__" in real or real == ":memory:":
            return False
        return os.path.commonpath([real, self._root]) != self._root
