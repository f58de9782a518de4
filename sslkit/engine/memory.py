"""Too little memory, on a GPU or on the CPU, said with the field to lower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sslkit.errors import TrainingError

if TYPE_CHECKING:
    from sslkit.recipe import TrainConfig

_SAYINGS = (
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory. On a CPU torch raises a plain
    RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAYINGS)


def step_needs_less(train: TrainConfig, device: torch.device, step: int) -> TrainingError:
    """The error of a step that does not fit. step: counted from 1."""
    batch, part = train.batch_size, train.micro_batch_size
    if part is None:
        remedy = f"lower train.batch_size, now {batch}, or set train.micro_batch_size below it"
    else:
        remedy = f"lower train.micro_batch_size, now {part}, or train.batch_size, now {batch}"
    return TrainingError(f"step {step}: out of memory on {device}; {remedy}")


def building_needs_less(device: torch.device | str) -> TrainingError:
    """The error of data and networks that do not fit."""
    return TrainingError(
        f"out of memory on {device} before the first step; take a smaller backbone, or images that "
        "are not kept in memory: `sslkit pack` makes a file that data: {name: pack} reads in parts"
    )


def evaluation_needs_less(device: torch.device) -> TrainingError:
    """The error of an evaluation that does not fit."""
    return TrainingError(
        f"evaluation: out of memory on {device}; all is saved: list fewer or smaller protocols in "
        "evaluate, and use sslkit eval"
    )
