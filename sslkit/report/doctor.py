"""What this installation can do, on one screen."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sslkit.environment_variables import MLFLOW_TRACKING_URI
from sslkit.errors import hide_logins

from .console import print_table

_PACKAGES = (
    "sslkit", "torch", "torchvision", "timm", "pluggy", "pydantic", "mlflow", "numpy",
    "scikit-learn", "pyarrow", "safetensors",
)  # fmt: skip


def diagnose() -> dict[str, Any]:
    """Versions, devices, compiler, memory, disk, plugins and the tracking store."""
    import psutil
    import torch

    from sslkit.host.plugins import load_plugins

    records = load_plugins().records
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(os.curdir)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "torch_threads": torch.get_num_threads(),
        "compiler": next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None),
        "memory_gb": {"total": memory.total / 1e9, "available": memory.available / 1e9},
        "disk_free_gb": disk.free / 1e9,
        "plugins": {
            f"{record.distribution} {record.version}": record.reason or "ok" for record in records
        },
        "mlflow_tracking_uri": hide_logins(MLFLOW_TRACKING_URI.text() or "") or None,
    }


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


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """The diagnosis as one table."""
    memory = found["memory_gb"]
    rows = [
        ("python", f"{found['python']} on {found['platform']}"),
        *((name, value or "not installed") for name, value in found["packages"].items()),
        ("devices", "; ".join(found["devices"])),
        ("torch threads", str(found["torch_threads"])),
        ("C++ compiler", found["compiler"] or "none: train.compile is not available on a CPU"),
        ("memory", f"{memory['available']:.1f} of {memory['total']:.1f} GB free"),
        ("disk", f"{found['disk_free_gb']:.0f} GB free here"),
        *((f"plugin {name}", state) for name, state in found["plugins"].items()),
        ("MLflow store", found["mlflow_tracking_uri"] or "sqlite:///<working folder>/mlflow.db"),
    ]
    print_table(("what", "found"), rows)
