"""Where and how networks compute: one bundle, which training, evaluation and export pass on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslkit.parallel.world import OneProcess, World

from .numerics import Precision, autocast


@dataclass(frozen=True)
class Compute:
    """Device, precision, layout and compilation, all of them settled (no `auto`, no
    `if_available`), and the processes that share the work."""

    device: torch.device
    precision: Precision
    channels_last: bool
    """Whether batches of images lie in memory with their channels last."""
    compiled: bool = False
    """Whether the backbone is."""
    compiled_augmentation: bool = False
    cuda_graphs: bool = False
    """Whether the compiled backbone is replayed as CUDA graphs."""
    world: World = field(default_factory=OneProcess)
    """The processes that share the work, and which of them this is."""
    sharded: bool = False
    """Whether each of them keeps a part of the weights alone."""

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

    def layout(self, samples: Tensor) -> Tensor:
        """A batch on the device, in the memory format of the network; only images have channels
        last."""
        channels_last = self.channels_last and samples.ndim == 4
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return samples.to(device=self.device, memory_format=layout)
