"""From the CPU to a GPU: many small tensors in one copy, and batches made beside the step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.api import Batch

_STEPS_AHEAD = 2
"""How many steps the host may queue before it waits for the GPU: enough that the GPU never waits
for the host, and few enough that the batches under way take little memory."""

_ALIGNMENT = 64
"""Bytes. Compiled kernels expect the start of their inputs to be aligned, and copy others."""


@dataclass(frozen=True)
class Bundle:
    """Mappings of tensors, all in one buffer of bytes: a copy costs a GPU as much time for ten
    bytes as for ten thousand."""

    buffer: Tensor
    """(bytes,) uint8."""
    layout: tuple[Mapping[str, tuple[int, torch.dtype, tuple[int, ...]]], ...]
    """For each mapping: name -> (first byte, type, shape)."""

    def unpack(self, buffer: Tensor) -> list[dict[str, Tensor]]:
        """The mappings, as views into `buffer`: a copy of the bundle's own on any device."""
        return [
            {name: _view(buffer, *place) for name, place in places.items()}
            for places in self.layout
        ]


def bundle(mappings: Sequence[Mapping[str, Tensor]], *, pin: bool = False) -> Bundle:
    """Copies tensors of a CPU into one buffer, in pinned memory where asked."""
    layout = []
    size = 0
    for mapping in mappings:
        places = {}
        for name, tensor in mapping.items():
            places[name] = (size, tensor.dtype, tuple(tensor.shape))
            size += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        layout.append(places)
    found = Bundle(torch.empty(size, dtype=torch.uint8, pin_memory=pin), tuple(layout))
    for mapping, views in zip(mappings, found.unpack(found.buffer), strict=True):
        for name, tensor in mapping.items():
            views[name].copy_(tensor)
    return found


def _view(buffer: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    return buffer[start : start + num_bytes].view(dtype).view(shape)


class SideStream:
    """A second queue of a GPU, on which batches are copied and augmented while the network still
    works on the batch before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._steps: deque[torch.cuda.Event] = deque()

    def run(self, make: Callable[[], Batch]) -> Batch:
        """The batch that `make` queues on the side stream, for use on the current one."""
        current = torch.cuda.current_stream(self._device)
        self._steps.append(current.record_event())
        if len(self._steps) > _STEPS_AHEAD:
            # Memory that two streams use is free again when both are done with it, which the host
            # learns by asking: a host that ran far ahead would allocate anew for every batch.
            self._steps.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            batch = make()
        current.wait_stream(self._stream)
        for tensor in _tensors(batch):
            tensor.record_stream(current)
        return batch


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield from batch.views
    yield from batch.targets.values()
    yield batch.indices
    if batch.labels is not None:
        yield batch.labels
