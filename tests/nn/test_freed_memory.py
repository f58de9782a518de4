"""Memory that a process frees and needs again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from sslkit.nn.freed_memory import keep_freed_memory
import torch

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)

def step():
    torch.ones(1 << 24).mul(2.0)  # twice 64 MiB

for _ in range(12):  # until the pieces have found their places
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow  # 11 seconds
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="of glibc's allocator alone"
)
def test_pages_are_kept() -> None:
    """The system has to give no page again."""
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", COUNT, how])) for how in ("keep", "not")
    )
    assert kept < 100
    assert given_back > 4 * kept  # 131,072 of 4 KiB, fewer where the system gives large ones
