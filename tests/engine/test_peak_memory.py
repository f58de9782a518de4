"""The peak memory that a run on a CPU logs is its own."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from sslkit.engine.peak_memory import peak_process_memory

CHILD = "from sslkit.engine.peak_memory import peak_process_memory; print(peak_process_memory())"
PARENT = f"""
import subprocess, sys
block = bytearray(b"x") * 1_500_000_000
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def test_peak_is_at_least_what_is_held() -> None:
    held = psutil.Process().memory_info().rss
    assert peak_process_memory() > 0.95 * held  # the kernel counts in steps


@pytest.mark.slow  # 6 seconds
@pytest.mark.skipif(sys.platform != "linux", reason="what is inherited is a matter of Linux")
def test_peak_is_not_that_of_the_process_that_started_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) < 1_400_000_000
