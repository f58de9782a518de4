"""Whether everything that a checkpoint holds is finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .optimization import Optimization
from .tracing import first_odd, tensors_in


class StateCheck:
    """Finds what is not finite in the state of a run.

    A buffer that holds infinities, and no NaN, before the first step is meant to (a mask, a "best
    so far"); it is then only asked for NaN."""

    def __init__(self, method: nn.Module, optimization: Optimization) -> None:
        self._method = method
        self._optimization = optimization
        self._infinite = {
            name
            for name, buffer in method.named_buffers()
            if buffer.is_floating_point() and bool(torch.isinf(buffer).any())
        }

    def find(self) -> tuple[str, str, float] | None:
        """(what it is, its name, the value) of the first tensor that is not finite: weights, then
        buffers, then the state of the optimiser. Waits for the device once if there is none."""
        if bool(_all_finite(tensor for _, _, tensor in self._tensors())):
            return None
        for kind, name, tensor in self._tensors():
            if odd := first_odd(iter([(name, tensor)])):
                return kind, name, odd[1]
        return None

    def _tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        for name, parameter in self._method.named_parameters():
            yield "weights", name, parameter.detach()
        for name, buffer in self._method.named_buffers():
            value = buffer.detach()
            if name in self._infinite:
                value = torch.where(torch.isinf(value), 0.0, value)
            yield "buffer", name, value
        names: dict[Tensor, str] = {p: name for name, p in self._method.named_parameters()}
        for owner, entry in self._optimization.optimizer.state.items():
            for key, moment in _named(entry):
                yield "state of the optimiser", f"{key} of {names.get(owner, '?')}", moment


def _named(entry: Any) -> Iterator[tuple[str, Tensor]]:
    items = entry.items() if isinstance(entry, dict) else ()
    for key, value in items:
        for tensor in tensors_in(value):
            yield str(key), tensor.detach()


def _all_finite(tensors: Iterator[Tensor]) -> Tensor:
    """A scalar on the device: whether all values are finite. The largest magnitude of a tensor is
    NaN or infinite where one of its values is, and takes no memory to find."""
    verdicts = [
        torch.isfinite(torch.linalg.vector_norm(_wide(tensor), torch.inf))
        for tensor in tensors
        if tensor.is_floating_point() and tensor.numel()
    ]
    if not verdicts:
        return torch.tensor(True)
    device = next((verdict.device for verdict in verdicts if not verdict.is_cpu), None)
    return torch.stack([verdict.to(device) for verdict in verdicts]).all()


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a number format that reductions know on every device."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
