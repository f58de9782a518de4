"""`python -m MODULE` from an interpreter that has imported torch, timm and MLflow already.

A command of sslkit needs 5 to 10 seconds of processor time to import them, which is most of what
the hundred commands of the pages take. `script` is the text of a program for the `bin` folder of a
virtual environment. It asks a server for a fork of itself, which takes over the arguments, the
variables, the working folder, the files and the environment of that program, and the signals that
it gets. sslkit itself is not imported before, so that it finds what the environment has installed.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
"""Set before torch is imported: a pool of threads does not survive a fork."""
_MODULES = (
    *("torch", "torch._dynamo", "torchvision", "timm", "matplotlib.pyplot", "PIL.Image"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "sklearn.manifold", "sklearn.metrics"),
    *("pyarrow.parquet", "pydantic", "pluggy", "yaml", "typer", "rich.console", "pytest"),
)
_FILES = array.array("i", (0, 1, 2))
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PAUSE_S = 0.005


def script(server: str, environment: Path, module: str) -> str:
    """A program that does what `environment/bin/python -m MODULE` does, through a server."""
    words = [sys.executable, "-IS", __file__, "ask", server, str(environment), module]
    return f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'


@contextmanager
def serving() -> Iterator[str]:
    """A server; where it is asked. It ends with the block, or with this process."""
    with tempfile.TemporaryDirectory() as folder:
        where = f"{folder}/socket"
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", where],
            env={**os.environ, **_ONE_THREAD},
            stdin=subprocess.DEVNULL,
        )
        try:
            while not Path(where).exists():
                assert process.poll() is None, "the server has ended"
                time.sleep(0.02)
            yield where
        finally:
            process.kill()
            process.wait()


# --- In the program that asks ---------------------------------------------------------------------


def _ask(where: str, prefix: str, module: str, *arguments: str) -> NoReturn:
    given = {"prefix": prefix, "module": module, "arguments": arguments}
    text = json.dumps({**given, "cwd": str(Path.cwd()), "env": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(where)
        server.sendmsg([b"%8d" % len(text)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FILES)])
        server.sendall(text)
        pid = int(server.recv(8))
        for number in _PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(server.recv(8) or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


# --- In the server --------------------------------------------------------------------------------


def _serve(where: str) -> str:
    """Returns in a fork that has taken over what a program was started with: the module to run."""
    for name in _MODULES:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{where}.begun")
    listening.listen()
    Path(f"{where}.begun").rename(where)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # each fork waits for its own
    parent = os.getppid()
    while True:
        if not select.select([listening], [], [], 1.0)[0]:
            if os.getppid() != parent:  # which was killed
                os._exit(0)
            continue
        asked, _ = listening.accept()
        if not os.fork():
            break
        asked.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    given, files = _receive(asked)
    if pid := os.fork():
        _report_end(asked, pid)
    asked.close()
    _take_over(given, files)
    return str(given["module"])


def _receive(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    size, passed, _, _ = asked.recvmsg(8, socket.CMSG_SPACE(len(_FILES) * files.itemsize))
    files.frombytes(passed[0][2])
    text = b""
    while len(text) < int(size):
        text += asked.recv(int(size) - len(text))
    return json.loads(text), list(files)


def _report_end(asked: socket.socket, pid: int) -> NoReturn:
    """Waits for a process, and ends with it; kills it where the program that asked was killed."""
    with suppress(OSError):
        asked.sendall(b"%8d" % pid)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if select.select([asked], [], [], _PAUSE_S)[0]:  # it sends no more, so this is its end
                os.kill(pid, signal.SIGKILL)
        asked.sendall(b"%8d" % os.waitstatus_to_exitcode(ended[1]))
    os._exit(0)


def _take_over(given: dict[str, Any], files: Sequence[int]) -> None:
    for number, handle in zip(_FILES, files, strict=True):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(given["cwd"])
    os.environ.clear()
    os.environ.update(given["env"])
    prefix = given["prefix"]
    sys.prefix = sys.exec_prefix = prefix
    sys.executable = f"{prefix}/bin/python"
    sys.argv = [given["module"], *given["arguments"]]
    sys.path[0] = given["cwd"]  # in place of the folder of this file
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site.addsitedir(f"{prefix}/lib/{version}/site-packages")


def _work_of(module: str) -> int:
    """The exit code of `python -m MODULE`."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As an interpreter ends, but for taking apart 5,000 modules, which is seconds of work."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        _ask(*sys.argv[2:])
    _end(_work_of(_serve(sys.argv[2])))
