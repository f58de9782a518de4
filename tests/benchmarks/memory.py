"""Peak memory of a piece of work, above what was in use before."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_peak_mb(function: Callable[[], object], device: torch.device) -> float | None:
    """Calls the function and returns by how much memory rose at most, in MB (10^6 bytes).

    On a GPU the allocator counts, exactly. On Linux the kernel's high-water mark of resident memory
    is set back first, and free memory of the heap is returned to the system, so that the function
    has to ask for all it needs; small blocks (below a few MB) may still be missed. None elsewhere.
    Call the function once before, so that what is set up once does not count, in a process where
    nothing else frees memory meanwhile."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not sys.platform.startswith("linux") or not _return_free_memory():
        return None
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM
        before = _kilobytes("VmRSS")
        function()
        return max(0.0, (_kilobytes("VmHWM") - before) * 1024 / 1e6)
    except (OSError, ValueError):  # a kernel or a container that does not allow it
        return None


def _return_free_memory() -> bool:
    """Whether the C library gave free memory of the heap back (glibc does)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{_STATUS} has no {name}")
