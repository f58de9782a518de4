"""What each rank of a command does to files, as the kernel saw it: its threads and the programs
that it starts included, and what C libraries open by themselves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_OPENING = ("open", "openat", "openat2", "creat")
_CHANGING = (
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
    *("link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "truncate"),
    *("chmod", "fchmodat", "chown", "fchownat", "utimensat", "setxattr"),
)
_STARTING = ("execve", "clone", "clone3", "fork", "vfork")
_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")


class Unavailable(Exception):
    """Why nothing can be traced here, in one line."""


@dataclass(frozen=True)
class Write:
    """One system call that succeeded and opened a file for writing, or changed a folder."""

    rank: int | None
    """Of which rank; None: the process that starts them."""
    call: str
    path: str
    """Whole, as the kernel resolved it; of a rename both, with ` -> ` between."""


def traced(
    folder: Path, *words: str, stop: Callable[[], bool] = lambda: False
) -> tuple[int, str, list[Write]]:
    """`sslkit WORDS` in a folder: its exit code, what it said, and all that its processes write.
    stop: sends it SIGTERM once that holds. Raises Unavailable."""
    if shutil.which("strace") is None:
        raise Unavailable("strace is not installed: apt install strace")
    notes = Path(tempfile.mkdtemp(dir=folder.parent))
    calls = ",".join((*_OPENING, *_CHANGING, *_STARTING))
    # A file for each thread (-ff), so that no call is cut in two; paths of handles (-y); all of the
    # environment, which says the rank (-v -s).
    strace = ["strace", "-ff", "-y", "-v", "-s", "100000", "-qq", "-e", f"trace={calls}"]
    strace.append("--seccomp-bpf")  # no other call stops the process
    command = [*strace, "-e", "signal=none", "-o", str(notes / "thread")]
    with (notes.parent / f"{notes.name}.txt").open("w+") as errors:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "sslkit", *words],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=errors,
            env={**os.environ, "SSLKIT_RANK_TIMEOUT": "120"},
        )  # fmt: skip
        while process.poll() is None and not stop():
            time.sleep(0.02)
        for child in _children(process.pid):  # of strace: the command
            os.kill(child, signal.SIGTERM)
        process.wait()
        errors.seek(0)
        said = errors.read()
    if "ptrace" in said.lower():
        raise Unavailable(f"strace may not trace here: {said.strip()[:200]}")
    return process.returncode, said, read(notes)


def _children(process: int) -> list[int]:
    with suppress(OSError):
        return [
            int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    return []


def read(notes: Path) -> list[Write]:
    """What strace has written, a file for each thread."""
    lines = {
        int(path.suffix[1:]): path.read_text(errors="replace").splitlines()
        for path in notes.iterdir()
    }
    parents: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for thread, its in lines.items():
        for line in its:
            if started := re.match(r"(?:clone3?|v?fork)\(.*\) += (\d+)", line):
                parents[int(started[1])] = thread
            elif line.startswith("execve(") and (rank := re.search(r'"RANK=(\d+)"', line)):
                ranks[thread] = int(rank[1])

    def rank_of(thread: int) -> int | None:
        while thread not in ranks and thread in parents:
            thread = parents[thread]
        return ranks.get(thread)

    return [
        Write(rank_of(thread), *found)
        for thread, its in lines.items()
        for line in its
        if (found := _write(line)) is not None
    ]


def _write(line: str) -> tuple[str, str] | None:
    """Call and path of a line, where it wrote and succeeded."""
    parts = re.match(r"(\w+)\((.*)\) += (\d+)(?:<(.*)>)?", line)
    if parts is None or parts[1] in _STARTING:
        return None
    call, arguments, _, path = parts.groups()
    if call not in _OPENING:
        return call, " -> ".join(_paths(arguments))
    if call != "creat" and not _WRITING.search(arguments):
        return None
    return call, path


def _paths(arguments: str) -> Sequence[str]:
    """The paths of a call; those of `...at` calls are below the folder before them."""
    found = []
    for folder, path in re.findall(r'(?:(?:\w+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', arguments):
        found.append(str(Path(folder) / path) if folder else path)
    return found
