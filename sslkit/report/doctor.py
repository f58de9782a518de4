"""What `sslkit doctor` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .console import print_table


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """The diagnosis as one table. found: `Diagnosis.to_json`."""
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
