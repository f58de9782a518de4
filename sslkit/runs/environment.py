"""What a run ran on: the content of `environment.json`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from sslkit.environment_variables import RECORDED
from sslkit.errors import hide_logins

PACKAGES = (
    "sslkit",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "safetensors",
    "pydantic",
    "pluggy",
    "mlflow",
)
"""Distributions whose version may change numbers or files."""

_GIT_TIMEOUT_S = 5.0
# Neither hooks nor a file monitor that the repository configures may run, and nothing is written.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_GIT_VARIABLES = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_GIT_REDIRECTS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set inside hooks of another one


@dataclass(frozen=True)
class GitState:
    """The repository around a directory."""

    root: str
    commit: str
    """The full hash of HEAD."""
    dirty: bool
    """Whether tracked files differ from that commit."""


def describe(
    *,
    device: str | None = None,
    plugins: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    processes: int = 1,
    launch: str | None = None,
    cwd: Path | None = None,
) -> dict[str, Any]:
    """Everything that `environment.json` holds, as plain JSON values.

    device: the resolved training device. plugins: distribution -> version of each plugin that the
    recipe uses. data: split -> fingerprint. files: field of the
    recipe -> digest of the file that it names. processes: how many share the work. launch: what
    started them. cwd: where to look for a git repository; by default the working directory."""
    git = git_state(cwd or Path.cwd())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "plugins": dict(sorted((plugins or {}).items())),
        "git": None if git is None else asdict(git),
        "command": [hide_logins(word) for word in sys.argv],
        "working_directory": str(cwd or Path.cwd()),
        "variables": {each.name: value for each in RECORDED if (value := each.text()) is not None},
        "hardware": hardware(),
        "torch": torch_settings(),
        "device": device,
        "processes": processes,
        "launch": launch,
        "data": dict(data or {}),
        "files": dict(files or {}),
    }


def code_digests(modules: Mapping[str, str]) -> dict[str, str]:
    """Distribution -> digest of its code, for code that changes without its version.

    modules: distribution -> a module of it; every Python file of its top package counts."""
    return {
        distribution: _code_digest(module.partition(".")[0])
        for distribution, module in sorted(modules.items())
    }


def _code_digest(package: str) -> str:
    spec = importlib.util.find_spec(package)
    digest = hashlib.sha256()
    for place in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(place).rglob("*.py")):
            digest.update(f"{path.relative_to(place)}\0".encode(errors="surrogateescape"))
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Versions of PACKAGES, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerators. Starts no CUDA context."""
    gpus = [torch.cuda.get_device_name(i) for i in _cuda_devices()]
    return {
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_threads": psutil.cpu_count(),
        "cpu_threads_usable": usable_cpus(),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def torch_settings() -> dict[str, Any]:
    """Settings of torch that the bits of a result depend on."""
    return {
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda,
        "cudnn": _cudnn_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def usable_cpus() -> int:
    """Logical processors that this process may run on."""
    try:
        return len(psutil.Process().cpu_affinity() or ())
    except (AttributeError, psutil.Error):  # macOS has no affinity
        return psutil.cpu_count() or 1


def git_state(directory: Path) -> GitState | None:
    """The git repository around a directory. None where there is none, it has no commit, git is
    missing, or git refuses to read it. Runs no hooks and writes nothing."""
    found = _git(directory, "rev-parse", "--show-toplevel", "HEAD")
    changes = _git(
        directory, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty"
    )
    if found is None or changes is None:
        return None
    root, _, commit = found.rpartition("\n")
    return GitState(root, commit, bool(changes))


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    environment = {**os.environ, **_GIT_VARIABLES}
    for name in _GIT_REDIRECTS:
        environment.pop(name, None)
    try:
        done = subprocess.run(
            [*_GIT, *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cudnn_version() -> int | None:
    if not torch.cuda.is_available():
        return None
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _cpu_name() -> str:
    """The processor's marketing name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda_devices() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
