"""The processes that train together. `World` is what the rest of the code knows of them; it is made
once, by `parallel.finding.find_world`, and passed down.

A process is a rank. Every rank runs the same code on the same recipe and calls the same methods of
its `World` in the same order; what one rank alone may do (make the run folder, write a file, talk
to a tracker) it does inside `once`, or behind `is_first`. One process is a world too, in which
every method gives back what it was given, and torch.distributed is not even imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class World(ABC):
    """The ranks of a run, seen from one of them. Each method is called by all ranks, in the same
    order, and gives the same on all of them unless it says otherwise."""

    rank: int = 0
    """Which one this is, 0 to size - 1."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Which one of those on this machine; it chooses the GPU."""
    local_size: int = 1
    """How many there are on this machine."""
    group: ProcessGroup | None = None
    """The ranks as torch.distributed knows them; None for one process."""

    @property
    def gradient_group(self) -> ProcessGroup | None:
        """The same ranks with a line of their own, for sums of gradients, which are sent while a
        backward pass goes on: when depends on what a network does with the images of a rank, and
        on one line they would be mistaken for statistics."""
        return None

    def __deepcopy__(self, memo: object) -> World:
        """Itself: a copy of a method is in the same world."""
        return self

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes, logs and speaks."""
        return self.rank == 0

    @abstractmethod
    def barrier(self) -> None:
        """Returns when all ranks have come here."""

    @abstractmethod
    def collect(self, value: T) -> list[T]:
        """What each rank gave, in the order of the ranks: plain values that can be pickled."""

    @abstractmethod
    def bring(self, value: T) -> list[T]:
        """`collect` on rank 0 alone, and nothing on the others; however long it takes until all
        ranks have come here. Tensors have to be on the CPU."""

    @abstractmethod
    def broadcast(self, value: T) -> T:
        """What rank 0 gave."""

    @abstractmethod
    def once(self, work: Callable[[], T]) -> T:
        """Has rank 0 alone do something: what it returns there is returned on every rank, and what
        it raises there is raised on every rank."""

    @abstractmethod
    def any(self, value: bool) -> bool:
        """Whether one of the ranks gave True."""

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks, of the same shape on each; differentiable."""

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, of the same shape on each; differentiable."""

    @abstractmethod
    def gather(self, value: Tensor) -> Tensor:
        """The rows of all ranks in the order of the ranks, (n, ...) to (size n, ...), of the same
        shape on each; differentiable."""

    @abstractmethod
    def gather_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`gather` of several tensors that all have n rows, in one message, of any type and without
        gradient."""

    @contextmanager
    def watching(self, when: str = "") -> Iterator[None]:
        """For what torch.distributed does by itself in the block: that another rank is gone is a
        RankError. when: ends its sentence."""
        yield

    @contextmanager
    def passing_on(
        self, asked: Callable[[], str | None], tell: Callable[[str], None]
    ) -> Iterator[None]:
        """Within the block, rank 0 is told what `asked` says on another rank, also while that one
        waits for it: there `tell` is called with it and the rank, once, on a thread that is not
        the main one."""
        yield

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """The whole work of this rank: what ends it is told to the others."""
        yield


class OneProcess(World):
    """The only rank: everything is what it was, and costs a call."""

    def barrier(self) -> None:
        pass

    def collect(self, value: T) -> list[T]:
        return [value]

    def bring(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, value: T) -> T:
        return value

    def once(self, work: Callable[[], T]) -> T:
        return work()

    def any(self, value: bool) -> bool:
        return value

    def sum(self, value: Tensor) -> Tensor:
        return value

    def mean(self, value: Tensor) -> Tensor:
        return value

    def gather(self, value: Tensor) -> Tensor:
        return value

    def gather_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)
