"""Work in threads, results in order.

Each thread works alone: torch would otherwise start a team of OpenMP threads for every one of them,
which wait for one another and take the cores from the training thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import torch

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_groups(
    function: Callable[[Item], Result],
    groups: Iterable[tuple[Tag, Sequence[Item]]],
    *,
    num_threads: int,
    groups_ahead: int = 2,
) -> Generator[tuple[Tag, list[Result]], None, None]:
    """Yields (tag, [function(item) for item in items]) for each (tag, items), in order.

    With `num_threads` 0 everything happens in the caller's thread. Otherwise the items of up to
    `groups_ahead` groups, and at least `num_threads` items, are under way while the caller works.
    `groups` is always advanced by the caller's thread. An exception of `function` is raised where
    its result would have come; it ends the threads, as does closing the iterator early.
    """
    if num_threads == 0:
        for tag, items in groups:
            yield tag, [function(item) for item in items]
        return
    pending: deque[tuple[Tag, list[Future[Result]]]] = deque()
    pool = ThreadPoolExecutor(
        num_threads, thread_name_prefix="sslkit-data", initializer=_work_alone
    )
    try:
        for tag, items in groups:
            pending.append((tag, [pool.submit(function, item) for item in items]))
            enough = sum(len(futures) for _, futures in pending) >= num_threads
            if len(pending) > groups_ahead and enough:
                yield _finished(pending)
        while pending:
            yield _finished(pending)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def alone() -> AbstractContextManager[object]:
    """Limits operators of torch to the calling thread. `torch.set_num_threads` would limit those of
    all threads: OpenMP's own setting counts for the thread that makes it."""
    torch.get_num_threads()  # a thread takes over torch's setting once, at its first operator
    limit: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="openmp")
    return limit


def _work_alone() -> None:
    alone()  # for good: the limit holds from here on, whether entered or not


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _finished(
    pending: deque[tuple[Tag, list[Future[Result]]]],
) -> tuple[Tag, list[Result]]:
    tag, futures = pending.popleft()
    return tag, [future.result() for future in futures]
