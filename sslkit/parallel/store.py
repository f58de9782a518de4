"""What ranks leave for each other at torch's store: signs of life, meetings, what ended the run.

torch's own calls wait for ever where the other end is silent: frozen, or behind a cable that is
out. Here one thread makes them all, and whoever asks waits for it no longer than `patience_s`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import Store as TorchStore
from torch.distributed.rendezvous import rendezvous

from sslkit.errors import RankError

T = TypeVar("T")

BEAT_S = 1.0
"""Seconds between two signs of life, and between two looks for what others have left."""
_TICK_S = 0.25
_SPARE_S = 5.0
"""How much longer than torch itself a rank waits for all to come."""
_CAUSE, _WISH = "cause", "wish"
_LEFT = 1 << 40
"""Signs of life, at once, of a rank that has left: more than any other will ever give."""


class Store:
    """The store, as one rank sees it. It is kept by rank 0, or by torchrun on that rank's machine.

    What asks it raises RankError where it is silent, and what torch raises where it is gone."""

    def __init__(
        self,
        rank: int,
        size: int,
        timeout: timedelta,
        in_vain: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Returns when all ranks have come. timeout: for them to come; later, for how long one of
        them may give no sign of life. in_vain: asked meanwhile, says why they will not come."""
        self._rank, self._size = rank, size
        self._limit_s = timeout.total_seconds()
        self.patience_s = self._limit_s + _SPARE_S
        """How long an answer may take."""
        self.lost: set[int] = set()
        """Ranks that ended without a word, or are silent."""
        self.heard: str | None = None
        """What ended the run, as a rank has told all."""
        self.wish: Callable[[], str | None] = lambda: None
        """The signal that this rank got, of which rank 0 is to know also while it is busy."""
        self.on_wish: Callable[[str], None] | None = None
        """On rank 0: called once, by the thread, with the first wish of another rank."""
        self._wished = False
        self._signs: dict[int, tuple[int, float]] = {}
        """Rank -> signs of life, and since when so many."""
        self._asked_at: float | None = None
        self._failures = 0
        """Exchanges in a row that torch could not make."""
        self._exchanged: Future[None] = Future()
        self._exchanged.set_result(None)
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._work, name="store", daemon=True).start()
        meeting = rendezvous("env://", rank, size, timeout=timeout)
        self.torch: TorchStore = self._ask(lambda: next(meeting)[0], in_vain)
        """For torch, whose waits for keys hold up the connection."""
        self._store: TorchStore = self._ask(self.torch.clone)
        self.patience_s = self._limit_s
        self.beat()

    # --- What ranks ask -------------------------------------------------------------------------

    def add(self, key: str, amount: int) -> int:
        """Adds to a number that all share, and returns it."""
        return self._ask(lambda: int(self._store.add(key, amount)))

    def signs(self) -> list[int]:
        """How many signs of life each rank has given."""
        return self._ask(lambda: [self._store.add(_sign(rank), 0) for rank in range(self._size)])

    def tell(self, cause: str, lost: Iterable[int] = ()) -> None:
        """Leaves for all what ended the run, unless they were told before. lost: ranks that it
        says are gone."""
        self.lost.update(lost)
        self._ask(lambda: self._leave_cause(cause, self.lost))

    def look(self) -> str | None:
        """`end`, after a look at what others have left; without one that is up to a second old."""
        self._ask(self._hear)
        return self.end()

    def end(self) -> str | None:
        """What ended the run, as far as is known without asking; None where it goes on."""
        return self.heard or self._own_end()

    def lose_first(self) -> None:
        """Notes that rank 0 is gone, unless it has left with the others' knowledge."""
        if self.heard is None:
            self.lost |= {0} - {self._rank}

    def leave(self) -> None:
        """Gives the last sign of life, and says that nobody has to wait for this rank."""
        self._ask(lambda: self._store.add(_sign(self._rank), _LEFT))
        self.add("left", 1)

    def close(self) -> None:
        """Ends the thread."""
        self._calls.put(None)

    def _ask(self, call: Callable[[], T], in_vain: Callable[[], str | None] = lambda: None) -> T:
        answer: Future[T] = Future()
        self._calls.put((call, answer))
        while True:
            with suppress(TimeoutError):
                return answer.result(_TICK_S)
            if (end := in_vain() or self._own_end()) is not None:
                raise RankError(end)

    def _own_end(self) -> str | None:
        """What became of the store itself, and of rank 0 with it."""
        silent_s = self._silent_s()
        if silent_s <= self.patience_s and self._failures < 2:
            return None
        self.lose_first()
        keeper = "rank 0" if self._rank else "torchrun"
        return _silence(keeper, silent_s) if silent_s > self.patience_s else f"{keeper} was lost"

    def _silent_s(self) -> float:
        """For how long the store owes an answer."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    # --- The thread -----------------------------------------------------------------------------

    def beat(self) -> None:
        """Gives a sign of life, looks for those of others and for what they have left: without
        waiting for it. To be called every `BEAT_S` seconds."""
        if self._exchanged.done():
            self._exchanged = Future()
            self._calls.put((self._exchange, self._exchanged))

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, answer = given
            self._asked_at = time.monotonic()
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
            self._asked_at = None

    def _exchange(self) -> None:
        try:
            self._store.add(_sign(self._rank), 1)
            self._hear()
            if silent := self._silent():
                self.lost.update(silent)
                who = f"rank {', '.join(map(str, silent))}"
                self._leave_cause(_silence(who, self._limit_s), silent)
            self._pass_wish()
            self._failures = 0
        except RuntimeError:  # torch's: the store is gone; a parent may know more in a moment
            self._failures += 1

    def _silent(self) -> list[int]:
        """Ranks without a sign of life for too long: all have an eye on rank 0, and it on all."""
        now, found = time.monotonic(), []
        for rank in [0] if self._rank else range(1, self._size):
            signs = self._store.add(_sign(rank), 0)
            if signs != self._signs.get(rank, (None, now))[0]:
                self._signs[rank] = signs, now
            elif signs < _LEFT and now - self._signs[rank][1] > self._limit_s:
                found.append(rank)
        return found

    def _hear(self) -> None:
        if self.heard is None and self._store.check([_CAUSE]):
            cause, lost = json.loads(self._store.get(_CAUSE))
            self.lost.update(lost)
            self.heard = str(cause)
            if self._rank:
                self._store.add("heard", 1)

    def _leave_cause(self, cause: str, lost: Iterable[int]) -> None:
        self._store.compare_set(_CAUSE, "", json.dumps([cause, sorted(lost)]))

    def _pass_wish(self) -> None:
        if self._wished:
            return
        if self._rank and (wish := self.wish()) is not None:
            self._store.set(_WISH, f"{wish} on rank {self._rank}")
            self._wished = True
        elif self.on_wish is not None and self._store.check([_WISH]):
            self._wished = True
            self.on_wish(self._store.get(_WISH).decode())


def _sign(rank: int) -> str:
    return f"alive/{rank}"


def _silence(who: str, seconds: float) -> str:
    return f"{who} gave no sign of life for {seconds:.0f} s"
