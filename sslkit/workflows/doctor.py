"""`sslkit doctor`: what this installation can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sslkit.environment_variables import MLFLOW_TRACKING_URI
from sslkit.errors import hide_logins

_PACKAGES = (
    "sslkit", "torch", "torchvision", "timm", "pluggy", "pydantic", "mlflow", "numpy",
    "scikit-learn", "pyarrow", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """Versions, devices, compiler, memory, disk, plugins and the tracking store."""

    python: str
    platform: str
    packages: dict[str, str | None]
    devices: list[str]
    torch_threads: int
    compiler: str | None
    """None where there is none, so that nothing can be compiled on a CPU."""
    memory_gb: dict[str, float]
    disk_free_gb: float
    plugins: dict[str, str]
    """`<distribution> <version>` -> "ok", or why it is broken."""
    mlflow_tracking_uri: str | None
    """Without its login; None for the default store."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dict(vars(self))


def diagnose() -> Diagnosis:
    """Versions, devices, compiler, memory, disk, plugins and the tracking store."""
    import psutil
    import torch

    from sslkit.host.plugins import load_plugins

    records = load_plugins().records
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(os.curdir)
    return Diagnosis(
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages={name: _version(name) for name in _PACKAGES},
        devices=_devices(),
        torch_threads=torch.get_num_threads(),
        compiler=next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None),
        memory_gb={"total": memory.total / 1e9, "available": memory.available / 1e9},
        disk_free_gb=disk.free / 1e9,
        plugins={
            f"{record.distribution} {record.version}": record.reason or "ok" for record in records
        },
        mlflow_tracking_uri=hide_logins(MLFLOW_TRACKING_URI.text() or "") or None,
    )


def _devices() -> list[str]:
    import torch

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps (fp32 only)")
    return devices


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
