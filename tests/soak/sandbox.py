"""One command of sslkit in a process of its own, forked from one that has imported everything.

The child redirects its output into files, goes to a folder of its own and calls the real console
script, `sslkit.cli.main`. An audit hook records what it does to the outside: files that are written
beyond its folder, connections, programs. The parent samples memory and CPU time, and ends what
hangs.
"""

from __future__ import annotations

import gc
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .fence import Fence

POLL_S = 0.01
IDLE_S = 20.0
"""A process that takes no CPU time for so long hangs. Wall time: no sleep of sslkit is longer."""
CPU_STOP_S = 40.0
MEMORY_STOP_MB = 4096.0
"""Where a command is ended, far beyond what counts as a fault: the machine is not ours alone."""
_BORN = "born"
"""The child's memory at its start, in MB: a fork leaves out the pages that files back."""


@dataclass(frozen=True)
class Outcome:
    """What came of one command."""

    code: int
    """Exit code; minus the number of the signal that ended it."""
    stdout: str
    stderr: str
    cpu_s: float
    peak_mb: float
    """Resident memory at its highest, beyond what the process began with."""
    hung: bool = False
    stopped: str = ""
    """Why the harness ended it; empty where it ended by itself."""
    trespasses: list[str] = field(default_factory=list)
    """What it did outside of its folder, one line each."""


@dataclass
class Child:
    """A command that runs."""

    pid: int
    folder: Path
    cpu_s: float = 0.0
    moved: float = 0.0
    """When it last took CPU time."""
    stopped: str = ""
    hung: bool = False


def prepare_parent() -> None:
    """Makes forks of this process cheap. Call after everything is imported."""
    gc.collect()
    gc.freeze()


def start(folder: Path, arguments: Sequence[str], call: Callable[[list[str]], None]) -> Child:
    """Forks a child that runs `call(arguments)` in `folder / "work"`.

    folder: exists, and holds `work`. Its output goes to `stdout` and `stderr` in `folder`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(folder, list(arguments), call)
    return Child(pid, folder, moved=time.monotonic())


def wait(children: list[Child]) -> Iterator[tuple[Child, Outcome]]:
    """Yields each of the children that has ended, after a short pause; removes them."""
    time.sleep(POLL_S)
    for child in list(children):
        _watch(child)
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            children.remove(child)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what it may have started
            yield child, _outcome(child, status, usage)


def run(folder: Path, arguments: Sequence[str], call: Callable[[list[str]], None]) -> Outcome:
    """One command, from start to end."""
    children = [start(folder, arguments, call)]
    while children:
        for _, outcome in wait(children):
            return outcome
    raise AssertionError("a child ended without an outcome")


def call_sslkit(arguments: list[str]) -> None:
    """The console script; `load_encoder PATH` is the function of that name."""
    from sslkit.cli import main

    if arguments[:1] != ["load_encoder"]:
        sys.argv = ["sslkit", *arguments]
        main()
        return
    import sslkit
    from sslkit.errors import SSLKitError

    try:
        encoder = sslkit.load_encoder(arguments[1])
    except SSLKitError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{encoder.num_features} features")


def _child(folder: Path, arguments: list[str], call: Callable[[list[str]], None]) -> None:
    """Never returns."""
    code = 99
    try:
        os.setpgid(0, 0)
        (folder / _BORN).write_text(str(_resident_mb(os.getpid())))
        _set_up(folder)
        fence = Fence(folder)
        try:
            call(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        fence.write(folder / "trespasses")
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _set_up(folder: Path) -> None:
    """Output, input, folder, environment and limits of the child."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        target = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(target, number)
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for name in ("tmp", "home"):
        (folder / name).mkdir(exist_ok=True)
    os.environ |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home"), "TERM": "dumb"}
    tempfile.tempdir = None  # the parent's choice
    os.chdir(folder / "work")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _watch(child: Child) -> None:
    """Ends a child that hangs, or that takes what the machine cannot give."""
    now = time.monotonic()
    try:
        parts = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        memory_mb = _resident_mb(child.pid)
    except (OSError, IndexError):
        return
    cpu_s = (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    if cpu_s > child.cpu_s:
        child.cpu_s, child.moved = cpu_s, now
    if now - child.moved > IDLE_S:
        _stop(child, f"took no CPU time for {IDLE_S:g} s", hung=True)
    elif cpu_s > CPU_STOP_S:
        _stop(child, f"took {CPU_STOP_S:g} s of CPU time and did not end", hung=True)
    elif memory_mb > MEMORY_STOP_MB:
        _stop(child, f"took {memory_mb:,.0f} MB")


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stop(child: Child, reason: str, hung: bool = False) -> None:
    child.stopped, child.hung = child.stopped or reason, hung
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def _outcome(child: Child, status: int, usage: resource.struct_rusage) -> Outcome:
    trespasses = child.folder / "trespasses"
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        stdout=_text(child.folder / "stdout"),
        stderr=_text(child.folder / "stderr"),
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * 1024 / 1e6 - float(_text(child.folder / _BORN) or 0.0),
        hung=child.hung,
        stopped=child.stopped,
        trespasses=_text(trespasses).splitlines() if trespasses.exists() else [],
    )


def _text(path: Path, limit: int = 1 << 20) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


def remove(folder: Path) -> None:
    """Removes the folder of an input, whatever lies in it."""
    for path, names, _ in os.walk(folder):
        for name in names:
            with suppress(OSError):
                Path(path, name).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
