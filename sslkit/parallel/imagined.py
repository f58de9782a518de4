"""One process that stands for each of several, for a plan: it does a rank's work, and notes the
messages that a rank would send."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .world import World

T = TypeVar("T")
About = Literal["weights", "gradients", "rows", "statistics", "flags", "method"]
Operation = Literal["all_reduce", "all_gather", "reduce_scatter"]


@dataclass(frozen=True)
class Message:
    """A collective, as one rank sees it."""

    about: About
    operation: Operation
    nbytes: int
    """What this rank gives: the tensor that is summed, or its part of what is gathered."""

    def sent(self, size: int) -> float:
        """Bytes that each of `size` ranks sends where they pass them on in a ring, as NCCL does
        and gloo for what is large."""
        rounds = size - 1
        shares = {"all_reduce": 2 / size, "reduce_scatter": 1 / size, "all_gather": 1}
        return self.nbytes * rounds * shares[self.operation]


class ImaginedRank(World):
    """Rank 0 of `size` ranks, which are all alike. What they would give is made up from what it
    gives itself, so that shapes, memory and work are those of a rank, and no result is one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.messages: list[Message] = []
        """Those since it was emptied last."""

    def note(
        self,
        about: About,
        operation: Operation,
        nbytes: int,
    ) -> None:
        """A message that would be sent now."""
        self.messages.append(Message(about, operation, nbytes))

    def barrier(self) -> None:
        pass

    def collect(self, value: T) -> list[T]:
        return [value] * self.size

    def bring(self, value: T) -> list[T]:
        return [value] * self.size

    def broadcast(self, value: T) -> T:
        return value

    def once(self, work: Callable[[], T]) -> T:
        return work()

    def any(self, value: bool) -> bool:
        self.note("flags", "all_reduce", 1)
        return value

    def sum(self, value: Tensor) -> Tensor:
        self.note("method", "all_reduce", value.nbytes)
        return self._with_way_back(value * self.size)

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size

    def gather(self, value: Tensor) -> Tensor:
        if value.device.type == "cpu":
            self.note("method", "all_gather", 24)  # whether all have one shape
        self.note("method", "all_gather", value.nbytes)
        return self._with_way_back(torch.cat([value] * self.size))

    def gather_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.note("rows", "all_gather", sum(value.nbytes for value in tensors.values()))
        return {name: self._rows_of_all(value.detach()) for name, value in tensors.items()}

    def _with_way_back(self, found: Tensor) -> Tensor:
        if found.requires_grad:
            found.register_hook(  # type: ignore[no-untyped-call]
                lambda back: self.note("method", "all_reduce", back.nbytes)
            )
        return found

    def _rows_of_all(self, own: Tensor) -> Tensor:
        """This rank's rows, then those of the others: its own, a tenth off at most, since equal
        rows would make the statistics of a batch singular."""
        others = torch.cat([own] * (self.size - 1))
        if others.is_floating_point():
            places = torch.arange(others.numel(), device=own.device, dtype=torch.float32)
            wave = torch.sin(places * math.sqrt(2)).view(others.shape).to(own.dtype)
            others = others * (1 + 0.1 * wave)
        return torch.cat([own, others])
