"""What the numbers were taken on. Host names, paths and users stay out: results are published."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from sslkit.runs.environment import describe

_FURTHER = ("lightly", "simplejpeg", "triton", "matplotlib")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions, commit, processor, GPU and threads."""
    found = describe(device=str(device), cwd=Path(__file__).parent)
    hardware = found["hardware"]
    hardware.pop("host")
    packages = found["packages"] | {name: v for name in _FURTHER if (v := _version(name))}
    git = found["git"]
    return {
        "python": found["python"],
        "platform": found["platform"],
        "packages": packages,
        "git": None if git is None else {"commit": git["commit"], "dirty": git["dirty"]},
        "hardware": hardware,
        "torch": found["torch"],
        "variables": found["variables"],
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
