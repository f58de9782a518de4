"""Where and how the mathematics runs: device, precision, determinism."""

from __future__ import annotations

import resource
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslkit.environment_variables import CUBLAS_WORKSPACE_CONFIG
from sslkit.errors import RecipeError
from sslkit.nn.numerics import Precision, autocast
from sslkit.parallel.world import World

if TYPE_CHECKING:
    from sslkit.recipe import TrainConfig


@dataclass(frozen=True)
class Runtime:
    """The resolved execution settings of a run."""

    world: World
    """The processes that share the work, and which of them this is."""
    device: torch.device
    precision: Precision
    channels_last: bool
    compiled: bool
    """Whether the backbone is."""
    compiled_augmentation: bool = False
    cuda_graphs: bool = False
    """Whether the compiled backbone is replayed as CUDA graphs."""

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled in the first step."""
        return self.compiled or self.compiled_augmentation

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; losses leave it by themselves."""
        return autocast(self.device, self.precision)

    def make_scaler(self) -> GradScaler | None:
        """What keeps small gradients above the smallest float16; None where nothing has to."""
        return GradScaler(self.device.type) if self.precision == "fp16" else None

    def begin_step(self) -> None:
        """Tells CUDA graphs that what they gave in the last step is no longer used."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def eager(self) -> AbstractContextManager[object]:
        """Evaluation runs uncompiled: its batches have other shapes, and its numbers are then
        those of `sslkit eval`."""
        return torch.compiler.set_stance("force_eager") if self.compiles else nullcontext()

    def prepare(self, module: nn.Module) -> None:
        """Moves a module to the device, in place."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

    def layout(self, images: Tensor) -> Tensor:
        """Images in the memory format of the network."""
        if self.channels_last and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def peak_memory_mb(self) -> float:
        """Peak memory of the accelerator, or of this process on a CPU, in MB (10^6 bytes)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return peak_process_memory() / 1e6


def peak_process_memory() -> int:
    """The most memory that this process has held, in bytes."""
    try:  # `ru_maxrss` starts from what the process that started this one held
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


def resolve_device(name: str) -> str:
    """The device that `auto` stands for here. Raises RecipeError for one that is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, ok in available.items() if ok)
        raise RecipeError(f"train.device: '{name}' is not available here; available: {there}")
    return name


def resolve_compile(setting: bool | str, field: str = "compile") -> bool:
    """Whether to compile. Raises RecipeError for `true` without a compiler; `if_available` becomes
    its outcome, which the resolved recipe records. field: what of `train` is resolved."""
    if setting is False:
        return False
    missing = _missing_compiler()
    if missing and setting is True:
        raise RecipeError(
            f"train.{field}: true, but {missing}; install one or set train.{field}=if_available"
        )
    return missing is None


def check_cuda_graphs(train: TrainConfig) -> None:
    """Raises RecipeError where graphs are asked for and cannot be. train: with its device and
    whether to compile resolved."""
    if not train.cuda_graphs:
        return
    if train.device != "cuda":
        raise RecipeError(
            f"train.cuda_graphs: true, but the device is {train.device}; set train.device=cuda or "
            "train.cuda_graphs=false"
        )
    if not train.compile:
        raise RecipeError(
            "train.cuda_graphs: true, but the backbone is not compiled; set train.compile=true or "
            "train.cuda_graphs=false"
        )


def _missing_compiler() -> str | None:
    if torch.cuda.is_available():
        from importlib.util import find_spec

        return None if find_spec("triton") else "triton is not installed"
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return None
    return "no C++ compiler (c++, g++, clang++) is on the PATH"


def make_runtime(train: TrainConfig, world: World) -> Runtime:
    """The runtime of resolved settings (no `auto`, no `if_available`)."""
    device = torch.device(train.device)
    if device.type == "mps" and train.precision != "fp32":
        raise RecipeError(
            f"train.precision: '{train.precision}' does not work on mps; set train.precision=fp32"
        )
    if train.deterministic:
        CUBLAS_WORKSPACE_CONFIG.set_default(":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(train.deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not train.deterministic
    return Runtime(
        world,
        device,
        train.precision,
        train.channels_last,
        compiled=bool(train.compile),
        compiled_augmentation=bool(train.compile_augmentation),
        cuda_graphs=train.cuda_graphs,
    )
