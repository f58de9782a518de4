"""What a soak found, as JSON and as one table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .fuzz import Tally
    from .kills import Chain

_PACKAGES = ("sslkit", "torch", "torchvision", "numpy", "pillow", "pyarrow", "timm", "mlflow")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }


def fuzz_report(seed: int, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """The whole of a fuzzing run."""
    used = {kind: tally for kind, tally in tallies.items() if tally.inputs}
    return {
        "what": "fuzz",
        "seed": seed,
        "inputs": sum(tally.inputs for tally in used.values()),
        "faults": sum(len(tally.findings) for tally in used.values()),
        "kinds": {kind: tally.to_json() for kind, tally in used.items()},
        "versions": versions(),
    }


def kills_report(seed: int, chains: list[Chain]) -> dict[str, Any]:
    """The whole of a run of kills."""
    return {
        "what": "kills",
        "seed": seed,
        "chains": [chain.to_json() for chain in chains],
        "kills": sum(len(chain.stops) for chain in chains),
        "faults": sum(len(chain.faults) for chain in chains),
        "versions": versions(),
    }


def print_report(report: Mapping[str, Any]) -> None:
    """One table on standard output."""
    if report["what"] == "fuzz":
        rows = [
            (
                kind, str(found["inputs"]), *(str(found["codes"].get(c, 0)) for c in "012"),
                f"{found['worst_cpu_s']:.1f}", f"{found['worst_extra_mb']:,}",
                str(len(found["faults"])),
            )
            for kind, found in report["kinds"].items()
        ]  # fmt: skip
        heads = ("kind", "inputs", "exit 0", "1", "2", "worst CPU s", "worst MB", "faults")
    else:
        rows = [
            (
                found["method"], str(len(found["stops"])), str(found["segments"]),
                found["kinds"], f"{len(found['faults'])}",
            )
            for found in report["chains"]
        ]  # fmt: skip
        heads = ("method", "kills", "processes", "moments", "faults")
    table = Table(*heads, title=f"seed {report['seed']}")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    print(f"{report['faults']} faults")
