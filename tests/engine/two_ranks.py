"""Two ranks in one process, for tests of what the code does with a `World` of several.

Each rank is a thread, and one of them runs at a time: they take turns where they meet, in the calls
of the world, and each keeps the state of torch's generator as it was. So both see their own
randomness, as two processes would, and every run of a test goes the same way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sslkit.parallel.world import World

T = TypeVar("T")
_PATIENCE_S = 60.0


class _Meeting:
    """Where the ranks leave what they give and take what the others gave."""

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self._size = size
        self._rounds: list[dict[int, Any]] = []
        self._changed = threading.Condition()
        self._left = False

    def exchange(self, rank: int, number: int, value: Any) -> list[Any]:
        """What all ranks gave in their call of this number. Raises where one has left before."""
        with self._changed:
            while len(self._rounds) <= number:
                self._rounds.append({})
            given = self._rounds[number]
            given[rank] = value
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(given) == self._size or self._left, _PATIENCE_S)
            if len(given) < self._size:
                raise RuntimeError("another rank has left, or does not come")
            return [given[each] for each in range(self._size)]

    def leave(self) -> None:
        """A rank has come to its end: who waits for it waits no longer."""
        with self._changed:
            self._left = True
            self._changed.notify_all()


class RankInThread(World):
    """One of several ranks, each in its own thread."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size = rank, size
        self._meeting = meeting
        self.calls: list[str] = []
        """What this rank has called, in order: the same on all ranks."""

    def run(self, work: Callable[[World], T]) -> T:
        """Does `work` in this thread, in turn with the others."""
        with self._meeting.turn:
            try:
                return work(self)
            finally:
                self._meeting.leave()

    def _exchange(self, value: Any, name: str) -> list[Any]:
        self.calls.append(name)
        generator = torch.get_rng_state()
        self._meeting.turn.release()
        try:
            return self._meeting.exchange(self.rank, len(self.calls), value)
        finally:
            self._meeting.turn.acquire()
            torch.set_rng_state(generator)

    def barrier(self) -> None:
        self._exchange(None, "barrier")

    def collect(self, value: T) -> list[T]:
        return self._exchange(value, "collect")

    def broadcast(self, value: T) -> T:
        first: T = self._exchange(value, "broadcast")[0]
        return first

    def once(self, work: Callable[[], T]) -> T:
        result: Any = None
        error: BaseException | None = None
        if self.is_first:
            try:
                result = work()
            except BaseException as raised:
                error = raised
        result, error = self._exchange((result, error), "once")[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def any(self, value: bool) -> bool:
        return any(self._exchange(value, "any"))

    def sum(self, value: Tensor) -> Tensor:
        return torch.stack(self._exchange(value, "sum")).sum(0)

    def mean(self, value: Tensor) -> Tensor:
        return torch.stack(self._exchange(value, "mean")).mean(0)

    def gather(self, value: Tensor) -> Tensor:
        return torch.cat(self._exchange(value, "gather"))


def on_ranks(work: Callable[[World], T], size: int = 2) -> list[T | BaseException]:
    """What `work` returns, or raises, on each rank. Fails where the ranks have called their world
    differently, and did not end by an error: that would hang, or mix up what they say."""
    meeting = _Meeting(size)
    ranks = [RankInThread(rank, size, meeting) for rank in range(size)]
    ends: list[Any] = [None] * size

    def go(rank: RankInThread) -> None:
        try:
            ends[rank.rank] = rank.run(work)
        except BaseException as error:
            ends[rank.rank] = error

    threads = [
        threading.Thread(target=go, args=(rank,), name=f"rank {rank.rank}") for rank in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = [rank.calls for rank in ranks]
    assert all(each == calls[0] for each in calls), calls
    return ends
