"""Runs the experiments in processes of their own and writes down what they end as."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .comparing import section_differences
from .experiments import CIFAR_IMAGES, EXPERIMENTS, Experiment, arguments
from .fingerprint import fingerprint
from .trees import THREADS, BitsError, Tree, last_line

FORMAT = 1
KILLED_FROM = 6
"""Step of the first checkpoint at which a run may be killed."""
_PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pyarrow",
    "safetensors",
)  # fmt: skip
_CPU_FIELDS = ("model name", "cpu family", "model", "stepping")


@dataclass(frozen=True)
class Options:
    """What is recorded, and how."""

    only: Sequence[str] = ()
    """Names of experiments; all where there are none."""
    jobs: int = 1
    """Experiments side by side; no effect on what is recorded."""
    cifar: Path | None = None
    """Folder with `train.parquet` and `test.parquet`."""
    brief: bool = False
    """Without the hashes of single tensors."""


def record(tree: Tree, options: Options) -> dict[str, Any]:
    """The record of a tree: its commit, the environment, and the fingerprint of every experiment
    (or `{"error": one line}` where one did not run). Raises BitsError."""
    started = time.monotonic()
    chosen = [one for one in EXPERIMENTS if not options.only or one.name in options.only]
    with tempfile.TemporaryDirectory(prefix="sslkit-bits-") as name:
        scratch = Path(name).resolve()
        (scratch / "metadata").mkdir()
        variables = tree.environment(scratch / "metadata")
        commit, digest = tree.commit(), tree.digest()
        print(f"{commit[:10]}: {tree.check_imports(variables, scratch)}", flush=True)
        runs = [Run(one, scratch / one.name, variables, options) for one in chosen]
        with ThreadPoolExecutor(options.jobs) as pool:
            found = dict(
                zip((one.name for one in chosen), pool.map(Run.measure, runs), strict=True)
            )
    if tree.digest() != digest:
        raise BitsError(f"{tree.root}: its files changed while it was recorded; record it again")
    for one in chosen:
        if one.same_as in found:
            _expect_same(found, one.name, one.same_as)
    return {
        "format": FORMAT,
        "commit": commit,
        "environment": environment(),
        "data": {"cifar10": CIFAR_IMAGES if options.cifar else None},
        "cost": {
            "cpu_s": round(sum(run.cpu_s for run in runs), 1),
            "wall_s": round(time.monotonic() - started, 1),
        },
        "experiments": found,
    }


def environment() -> dict[str, Any]:
    """What other bits may come from, if it is not the code. Holds no host and no path."""
    import torch

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": THREADS,
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu() -> str:
    """Name and model of the processor, as far as the system tells them."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    first = cpuinfo.read_text(errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    told = {key.strip(): value.strip() for key, _, value in pairs}
    return ", ".join(f"{name} {told[name]}" for name in _CPU_FIELDS if name in told)


@dataclass
class Run:
    """An experiment on its way."""

    experiment: Experiment
    folder: Path
    variables: dict[str, str]
    options: Options = Options()
    cpu_s: float = field(default=0.0, init=False)

    def measure(self) -> dict[str, Any]:
        """Its fingerprint, or `{"error": ...}`."""
        self.folder.mkdir()
        try:
            words = arguments(self.experiment, self.folder, self.options.cifar)
            if self.experiment.killed:
                self._kill(words)
                words = ["--resume", str(self._run_dir().relative_to(self.folder))]
            self._finish(words)
            found = fingerprint(self._run_dir(), brief=self.options.brief)
        except BitsError as error:
            found = {"error": str(error)}
        said = found.get("error", "done")
        print(f"  {self.experiment.name}: {said} ({self.cpu_s:.1f} s of CPU time)", flush=True)
        return found

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "sslkit", "run", *words],
                cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit code; notes its CPU time."""
        _, status, usage = os.wait4(process.pid, 0)
        self.cpu_s += usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode

    def _finish(self, words: list[str]) -> None:
        if code := self._wait(self._start(words)):
            said = last_line((self.folder / "output").read_text(errors="replace"))
            raise BitsError(f"sslkit run ended with code {code}: {said}")

    def _kill(self, words: list[str]) -> None:
        """Lets a run come to a checkpoint and kills it there."""
        process = self._start(words)
        while not self._has_checkpoint():
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        process.kill()
        if (code := self._wait(process)) != -9:
            said = last_line((self.folder / "output").read_text(errors="replace"))
            raise BitsError(f"ended with code {code} before it was killed: {said}")

    def _has_checkpoint(self) -> bool:
        names = [path.name for path in self.folder.glob("runs/*/checkpoints/step-*.pt")]
        return any(int(re.findall(r"\d+", name)[0]) >= KILLED_FROM for name in names)

    def _run_dir(self) -> Path:
        (run,) = (self.folder / "runs").iterdir()
        return run


def _expect_same(found: dict[str, Any], name: str, other: str) -> None:
    """Turns an experiment into an error where it does not have the bits of another."""
    if "error" in found[name] or "error" in found[other]:
        return
    if different := section_differences(found[name], found[other]):
        found[name] = {"error": f"not as {other}: {different[0]}"}
        print(f"  {name}: {found[name]['error']}", flush=True)
