"""An interpreter that has imported torch, say, and gives forks of itself, each of which runs a
script: what a law asks of another interpreter then takes as long as the script does.

`PreparedInterpreter` runs this file as a program, so that it imports nothing else."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PAUSE_S = 0.002


@dataclass(frozen=True)
class Work:
    """A script, and what it finds when it begins."""

    script: str
    words: Sequence[str]
    given: str
    """Its standard input."""
    folder: str
    """Where it runs."""
    variables: Mapping[str, str]
    path: Sequence[str]
    """Where it finds modules."""
    limit_s: float


class PreparedInterpreter:
    """The program, seen from the process that asks it. It ends with that process."""

    def __init__(self, modules: Sequence[str], variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-P", __file__, *modules],
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, work: Work) -> subprocess.CompletedProcess[str]:
        """What a script came to. Raises subprocess.TimeoutExpired."""
        asks, answers = self._process.stdin, self._process.stdout
        assert asks is not None
        assert answers is not None
        with tempfile.TemporaryDirectory() as place:
            for name, text in (("script.py", work.script), ("in", work.given)):
                (Path(place) / name).write_text(text, encoding="utf-8")
            asks.write(json.dumps({**asdict(work), "place": place}) + "\n")
            asks.flush()
            answer = answers.readline()
            if not answer:
                raise RuntimeError("the interpreter that gives forks of itself has ended")
            code = json.loads(answer)
            out, err = ((Path(place) / name).read_text("utf-8") for name in ("out", "err"))
        if code is None:
            raise subprocess.TimeoutExpired(work.script, work.limit_s)
        return subprocess.CompletedProcess(work.script, code, out, err)

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


# --- In the program -------------------------------------------------------------------------------


def _serve() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os._exit(_code_of(asked))
        print(json.dumps(_end_of(pid, asked["limit_s"])), flush=True)


def _end_of(pid: int, limit_s: float) -> int | None:
    """The exit code of a fork; None for one that was killed because it took too long."""
    ends = time.monotonic() + limit_s
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return None
        time.sleep(_PAUSE_S)
    return os.waitstatus_to_exitcode(ended[1])


def _code_of(asked: Mapping[str, Any]) -> int:
    """Runs the script of a fork, as a new interpreter does that is started with it."""
    place = asked["place"]
    writing = os.O_WRONLY | os.O_CREAT
    for number, name, flags in ((0, "in", os.O_RDONLY), (1, "out", writing), (2, "err", writing)):
        os.dup2(os.open(f"{place}/{name}", flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (until it ends)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["variables"])
    sys.path[:] = asked["path"]
    sys.argv[1:] = asked["words"]
    importlib.invalidate_caches()
    code = 0
    try:
        runpy.run_path(f"{place}/script.py", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
