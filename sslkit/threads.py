"""Work in threads, results in order.

Each thread works alone: torch would otherwise start a team of OpenMP threads for every one of them,
which wait for one another and take the cores from the training thread.

The work may be a plugin's and may hang, on a network file for example. So nobody waits for it for
ever: threads are daemons, and a consumer can give up. Nor may a daemon be inside torch when the
interpreter ends: it is ended as it comes back from C++, which aborts the process. So that waits
some seconds for the work that is under way, and for no other.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, closing, suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet

import torch

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")

_ASK_EVERY_S = 0.25
_LINGER_S = 1.0
"""How long the end of an iteration waits for work that is under way."""
_LINGER_AT_EXIT_S = 5.0
"""And that of the interpreter."""


def ordered_groups(
    function: Callable[[Item], Result],
    groups: Iterable[tuple[Tag, Sequence[Item]]],
    *,
    num_threads: int,
    groups_ahead: int = 2,
    give_up: Callable[[], bool] | None = None,
) -> Generator[tuple[Tag, list[Result]], None, None]:
    """Yields (tag, [function(item) for item in items]) for each (tag, items), in order.

    With `num_threads` 0 everything happens in the caller's thread. Otherwise the items of up to
    `groups_ahead` groups, and at least `num_threads` items, are under way while the caller works.
    `groups` is always advanced by the caller's thread. An exception of `function` is raised where
    its result would have come; it ends the threads, as does closing the iterator early. Work that
    is then still under way is waited for a second, and left to itself if it hangs.

    give_up: asked now and then while a result is waited for; True ends the iteration.
    """
    if num_threads == 0:
        for tag, items in groups:
            yield tag, [function(item) for item in items]
        return
    pending: deque[tuple[Tag, list[Future[Result]]]] = deque()
    pool = _Pool(function, num_threads)
    try:
        for tag, items in groups:
            pending.append((tag, [pool.submit(item) for item in items]))
            enough = sum(len(futures) for _, futures in pending) >= num_threads
            if len(pending) > groups_ahead and enough:
                if not _finished(pending[0][1], give_up):
                    return
                yield _results(pending)
        while pending:
            if not _finished(pending[0][1], give_up):
                return
            yield _results(pending)
    finally:
        pool.close(future for _, futures in pending for future in futures)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int,
    ahead: int = 2,
) -> Generator[Result, None, None]:
    """`map(function, items)` by threads that are at least `ahead` items ahead; see
    `ordered_groups`."""
    groups = ((None, (item,)) for item in items)
    results = ordered_groups(function, groups, num_threads=num_threads, groups_ahead=ahead)
    with closing(results):
        for _, (result,) in results:
            yield result


class _Pool(Generic[Item, Result]):
    """Threads that end with the process, whatever they are at: those of `concurrent.futures` keep
    it alive until each has finished its work, and all that waits."""

    alive: ClassVar[WeakSet[_Pool[Any, Any]]] = WeakSet()
    """Those with threads: a thread that works holds its pool."""

    def __init__(self, function: Callable[[Item], Result], num_threads: int) -> None:
        self._function = function
        self._closed = False
        self.alive.add(self)
        self._queue: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"sslkit-data-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """The future result of the function on an item."""
        future: Future[Result] = Future()
        self._queue.put((future, item))
        return future

    def close(self, waiting: Iterable[Future[Result]]) -> None:
        """Drops what is not begun and waits a moment for what is."""
        for future in waiting:
            future.cancel()
        self.drop()
        self.join(time.monotonic() + _LINGER_S)

    def drop(self) -> None:
        """Has the threads end after what they are at."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)

    def join(self, until: float) -> None:
        """Waits for the threads, up to a time of the monotonic clock."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        alone()  # for good: the limit holds from here on, whether entered or not
        while (task := self._queue.get()) is not None and not self._closed:
            future, item = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._function(item))
            except BaseException as error:  # raised where the result would have come
                future.set_exception(error)
            del future, item, task  # else the last result is kept until the next item comes


@atexit.register
def _end_all() -> None:
    """Before the interpreter is taken apart, while threads may still come back to Python."""
    pools = list(_Pool.alive)
    for pool in pools:
        pool.drop()
    until = time.monotonic() + _LINGER_AT_EXIT_S
    with suppress(KeyboardInterrupt):  # who asks again does not want to wait
        for pool in pools:
            pool.join(until)


def alone() -> AbstractContextManager[object]:
    """Limits operators of torch to the calling thread. `torch.set_num_threads` would limit those of
    all threads: OpenMP's own setting counts for the thread that makes it."""
    torch.get_num_threads()  # a thread takes over torch's setting once, at its first operator
    limit: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="openmp")
    return limit


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _finished(futures: Sequence[Future[Result]], give_up: Callable[[], bool] | None) -> bool:
    """Waits for results. False where the caller gave up before they came."""
    if give_up is None:
        wait(futures)
        return True
    while not all(future.done() for future in futures):
        wait(futures, _ASK_EVERY_S)
        if give_up() and not all(future.done() for future in futures):
            return False
    return True


def _results(pending: deque[tuple[Tag, list[Future[Result]]]]) -> tuple[Tag, list[Result]]:
    tag, futures = pending.popleft()
    return tag, [future.result() for future in futures]
