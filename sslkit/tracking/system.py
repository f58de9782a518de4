"""Metrics of the machine while a run goes on. MLflow shows what is named `system/...` in a tab of
its own. Megabytes are 10^6 bytes."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import psutil
import torch

from sslkit.runs.metrics_file import SYSTEM_PREFIX

logger = logging.getLogger("sslkit.tracking")

Record = Callable[[Mapping[str, float]], None]


class SystemSampler:
    """Calls `record` every `interval_s` seconds from a daemon thread, as a context manager:

        with RunLog(...) as log, SystemSampler(log.log_system, device):
            ...

    device: the training device; a GPU is watched only once torch uses it."""

    def __init__(
        self, record: Record, device: torch.device | None = None, interval_s: float = 10.0
    ) -> None:
        self._record = record
        self._device = device or torch.device("cpu")
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; the first sample comes after one interval."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name="sslkit-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread and waits for it. A second call does nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sample(self) -> dict[str, float]:
        """One sample; processor figures are averages since the last one."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": memory.percent,
            "memory_mb": (memory.total - memory.available) / 1e6,
            "process_cpu_percent": self._process.cpu_percent(),
            "process_memory_mb": self._process.memory_info().rss / 1e6,
            **_gpu(self._device),
        }
        return {SYSTEM_PREFIX + name: value for name, value in values.items()}

    def __enter__(self) -> SystemSampler:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _work(self) -> None:
        psutil.cpu_percent()  # the first call of a thread starts the clock of its average
        self._process.cpu_percent()
        while not self._stop.wait(self._interval_s):
            try:
                self._record(self.sample())
            except Exception as error:  # a driver may raise anything, and the run goes on
                logger.warning("system metrics: no more of them (%s)", error)
                return


def _gpu(device: torch.device) -> dict[str, float]:
    """Use of the training device alone: the others belong to other ranks."""
    if device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        free, total = torch.cuda.mem_get_info(device)
        values = {
            "gpu_memory_mb": (total - free) / 1e6,
            "gpu_memory_percent": 100 * (total - free) / total,
        }
        if importlib.util.find_spec("pynvml") is not None:
            values["gpu_percent"] = float(torch.cuda.utilization(device))
            values["gpu_power_w"] = torch.cuda.power_draw(device) / 1000
        return values
    if device.type == "mps":
        return {"gpu_memory_mb": torch.mps.driver_allocated_memory() / 1e6}
    return {}
