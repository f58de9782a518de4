"""Work of several ranks that is cut into batches, as evaluation is: the batches are those of one
process, each is done by one rank, and what comes of them is put together on rank 0, which decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from .world import OneProcess, World

T = TypeVar("T")


class Portable(Protocol):
    """What can be sent: a tensor, or something made of tensors."""

    @property
    def device(self) -> Any:
        """Where it is."""

    def to(self, device: Any, /) -> Any:
        """The same elsewhere."""


P = TypeVar("P", bound=Portable)


@dataclass
class SharedWork:
    """What the ranks do together. Each calls the same methods in the same order; an exception of
    `once`, and a stop, is raised on all of them, and what else ends one ends the others."""

    world: World = field(default_factory=OneProcess)
    settle: Callable[[], None] = lambda: None
    """Called by all ranks after images were read: what one has found out the others then know."""
    agree: Callable[[], bool] = lambda: False
    """Whether one of the ranks was asked to stop; the same on all of them."""
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    """For what rank 0 does while the others wait: it may be cut off anywhere."""

    def own(self, batches: Iterable[T]) -> list[T]:
        """Those of all batches that are this rank's: every `size`-th."""
        return list(batches)[self.world.rank :: self.world.size]

    def one_after_another(self, images: int, batch: int) -> int:
        """How many out of so many images are passed one after the other, in batches of `batch`: the
        largest batch of each round, and all of them with one process."""
        if not images:
            return 0
        full_rounds = -(-images // (batch * self.world.size)) - 1
        return full_rounds * batch + min(images - full_rounds * batch * self.world.size, batch)

    def in_order(self, blocks: Iterable[P], count: int) -> Iterator[P]:
        """What is made of all batches, in their order, on rank 0; nothing on the others, which keep
        nothing. With one process: `blocks`, as they come.

        blocks: of this rank's batches, made as they are asked for. count: batches of all ranks.
        A round takes as long as its slowest batch. Raises KeyboardInterrupt on all ranks where one
        was asked to stop."""
        if self.world.size == 1:
            yield from blocks
            return
        blocks = iter(blocks)
        for _ in range(0, count, self.world.size):
            block = next(blocks, None)
            away = None if block is None or self.world.is_first else block.to("cpu")
            brought = self.world.bring(away)
            if self.agree():
                raise KeyboardInterrupt
            if block is not None and self.world.is_first:
                yield block
                yield from (each.to(block.device) for each in brought if each is not None)

    def once(self, work: Callable[[], T]) -> T:
        """See `World.once`. A stop that was asked for meanwhile is heeded when it is over."""
        if self.world.size == 1:
            return work()

        def cut_off_by_signals() -> T:
            with self.alone():
                return work()

        result = self.world.once(cut_off_by_signals)
        if self.agree():
            raise KeyboardInterrupt
        return result
