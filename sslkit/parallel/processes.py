"""Several processes as a `World`, on torch.distributed: gloo on the CPU, NCCL between GPUs.

Short meetings (`any`, `gather`, the reduction of gradients) are collectives and end after
`SSLKIT_RANK_TIMEOUT` seconds; a rank that dies ends them at once. What takes rank 0 an unknown time
(`once`: an evaluation) is waited for at the store, for as long as that rank gives signs of life.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from sslkit import environment_variables as variables
from sslkit.errors import RankError

from .collectives import all_gather, all_reduce
from .launch import Launch
from .packing import packed, unpacked
from .parent_line import ToParent
from .world import World

T = TypeVar("T")

_BEAT_S = 1.0
"""Seconds between two signs of life, and between two looks for the end of others."""
_GRACE_S = 8.0
"""How long a rank that lost another one waits for that one's reason, and rank 0 at the end for the
others; and how long a rank may take to notice that another one has failed."""


class Processes(World):
    """This process among several that `torchrun`, SLURM or `sslkit run --nproc` have started."""

    def __init__(self, launch: Launch) -> None:
        """Meets the others. Raises RankError where not all of them come."""
        self.rank, self.size = launch.rank, launch.size
        self.local_rank, self.local_size = launch.local_rank, launch.local_size
        variables.MASTER_ADDR.set_default(launch.master_address)
        variables.MASTER_PORT.set_default(str(launch.master_port))
        self.timeout = timedelta(seconds=variables.rank_timeout_s())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        self._parent = ToParent()
        self._lost: set[int] = set()
        """Ranks that ended without a word."""
        self._heard: str | None = None
        """What another rank has told all."""
        self._alone = self._noticed = False
        """Whether rank 0 does what the others wait for; whether what ended the run was heard of."""
        with self.watching("while the processes met"):
            self._store, _, _ = next(
                rendezvous("env://", self.rank, self.size, timeout=self.timeout)
            )
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=self.timeout,
            )
        assert dist.group.WORLD is not None
        self.group = self._all = dist.group.WORLD
        self._meetings = 0
        self._beats: dict[int, tuple[int | None, float]] = {}
        self._ended = threading.Event()
        self._alive = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self._alive.start()

    # --- Meetings -----------------------------------------------------------------------------

    def barrier(self) -> None:
        self._meet()

    def collect(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self.watching():
            dist.all_gather_object(found, value)
        return found

    def bring(self, value: T) -> list[T]:
        found: list[Any] | None = [None] * self.size if self.is_first else None
        self._meet()
        with self.watching():
            dist.gather_object(value, found)
        return found or []

    def broadcast(self, value: T) -> T:
        return self.once(lambda: value)

    def once(self, work: Callable[[], T]) -> T:
        outcome: list[Any] = [self._outcome(work) if self.is_first else None]
        self._meet()
        with self.watching():
            dist.broadcast_object_list(outcome)
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def any(self, value: bool) -> bool:
        flag = torch.tensor([value], dtype=torch.uint8)
        with self.watching():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def sum(self, value: Tensor) -> Tensor:
        with self.watching():
            return all_reduce(value, self._all)

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size

    def gather(self, value: Tensor) -> Tensor:
        with self.watching():
            return all_gather(value, self._all)

    def gather_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        buffer, layout = packed(tensors)
        rows = buffer.new_empty(self.size * len(buffer), buffer.shape[1])
        with self.watching():
            dist.all_gather(list(rows.chunk(self.size)), buffer, group=self.group)
        return unpacked(rows, layout)

    def _outcome(self, work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        self._alone = True
        try:
            return work(), None
        except BaseException as error:
            error.__traceback__ = None
            return None, error
        finally:
            self._alone = False

    # --- Ends ---------------------------------------------------------------------------------

    @contextmanager
    def watching(self, when: str = "") -> Iterator[None]:
        """Turns what torch raises where another rank is gone, or does not come, into a RankError
        that says why."""
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_lost(error):
                raise
            raise RankError(self._why_lost(error, when)) from error

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """What ends this rank is told to the others, who end by it too. Rank 0 says it to the user;
        the others are silent, unless rank 0 is gone."""
        try:
            yield
        except BaseException as error:
            if self._ended.is_set():  # all has been said by a block within this one
                raise
            told = self._tell(f"ended with rank {self.rank}: {str(error) or type(error).__name__}")
            self._leave()
            if self._speaks(told):
                raise
            code = getattr(error, "exit_code", 1)
            raise RankError(str(error), said=True, exit_code=code) from error
        if not self._ended.is_set():
            self._leave()

    def _speaks(self, told: bool) -> bool:
        """Whether this rank tells the user: rank 0, or where it is gone, one that nobody hears, of
        which the parent chooses one. told: whether rank 0 was told."""
        self._parent.listen()
        if self._parent.gone:
            return any(gone.speak for gone in self._parent.gone.values())
        return self.is_first or (not told and self._heard is None)

    def _tell(self, cause: str) -> bool:
        """Leaves the cause for all, where there is none yet; returns whether that was possible."""
        try:
            self._store.compare_set("cause", "", cause)
        except Exception:  # the store went with rank 0
            return False
        return True

    def _cause(self) -> str | None:
        """What ended the run, as far as it is known. Raises where the store is gone."""
        self._parent.listen()
        if self._parent.gone:
            self._lost.update(self._parent.gone)
            return str(next(iter(self._parent.gone.values())))
        if self._heard is None and self._store.check(["cause"]):
            self._heard = str(self._store.get("cause").decode())
            self._store.add("heard", 1)
        return self._heard

    def _why_lost(self, error: Exception, when: str) -> str:
        self._noticed = True
        before, until = self._all_beats(), time.monotonic() + _GRACE_S
        while hasattr(self, "_store") and time.monotonic() < until:
            with suppress(Exception):
                if (cause := self._cause()) is not None:
                    return cause
            time.sleep(0.1)
        return self._name_lost(error, before, when)

    def _name_lost(self, error: Exception, before: Sequence[int], when: str) -> str:
        """What can be said of a rank that left no cause. before: signs of life some time ago."""
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        silent = {
            r for r, (a, b) in enumerate(zip(before, self._all_beats(), strict=False)) if a == b
        }
        silent.discard(self.rank)
        self._lost |= silent
        what = f"did not come within {self.timeout.seconds} s" if late else "was lost"
        who = f"rank {', '.join(map(str, sorted(silent)))}" if silent else "another process"
        cause = f"{who} {what} {when}".rstrip()
        self._tell(cause)
        return cause

    def _all_beats(self) -> list[int]:
        """The signs of life that each rank has given; empty where the store is gone."""
        with suppress(Exception):
            return [self._store.add(f"alive/{rank}", 0) for rank in range(self.size)]
        return []

    def _leave(self) -> None:
        """Ends the meeting so that nobody waits. The store is rank 0's, who goes when the others
        have left or heard why: one that waits in a collective learns of the end by its going."""
        self._ended.set()
        with suppress(Exception):
            dist.destroy_process_group()
        with suppress(Exception):
            self._store.add("left", 1)
            until = time.monotonic() + _GRACE_S
            while self.is_first and time.monotonic() < until:
                away = self._store.add("left", 0), self._store.add("heard", 0) + 1
                if max(away) >= self.size - len(self._lost):
                    break
                time.sleep(0.02)

    # --- Signs of life ------------------------------------------------------------------------

    def _beat(self) -> None:
        """Gives signs of life, and looks for the end of others: the main thread may be busy with
        what the others wait for, or hang."""
        since = None
        self._parent.beat()  # at once: the parent counts from the first one
        while not self._ended.wait(_BEAT_S):
            self._parent.beat()
            try:
                self._store.add(f"alive/{self.rank}", 1)
                cause = self._cause()
            except Exception:  # the store is gone, and rank 0 with it
                cause = "rank 0 was lost"
            if cause is None or self._noticed:
                continue
            if since is None:
                since = time.monotonic()
                if self._alone:  # nobody waits for it any more
                    _thread.interrupt_main(signal.SIGTERM)
            elif not self._alone and time.monotonic() - since > _GRACE_S:
                self._end_hanging(cause)

    def _end_hanging(self, cause: str) -> None:
        """Ends this process, whose main thread does not do it. What is on disk is whole at any
        moment."""
        if self._speaks(told=not cause.startswith("rank 0")):
            print(f"error: {cause}", file=sys.stderr, flush=True)
        os._exit(1)

    def _meet(self) -> None:
        """Returns when all ranks have come here, however long that takes, as long as each of them
        gives signs of life."""
        self._meetings += 1
        key, pause, looked = f"meeting/{self._meetings}", 0.001, time.monotonic()
        with self.watching():
            self._store.add(key, 1)
            while self._store.add(key, 0) < self.size:
                time.sleep(pause)
                pause = min(1.5 * pause, 0.1)
                if time.monotonic() - looked < _BEAT_S:
                    continue
                looked = time.monotonic()
                if (cause := self._cause()) is not None:
                    self._noticed = True
                    raise RankError(cause)
                self._refuse_silence()

    def _refuse_silence(self) -> None:
        """Raises RankError where a rank has given no sign of life for long."""
        now = time.monotonic()
        for rank in range(self.size):
            beats = self._store.add(f"alive/{rank}", 0)
            if beats != self._beats.get(rank, (None, 0.0))[0]:
                self._beats[rank] = beats, now
            elif now - self._beats[rank][1] > self.timeout.seconds:
                self._noticed = True
                self._lost.add(rank)
                cause = f"rank {rank} has given no sign of life for {self.timeout.seconds} s"
                self._tell(cause)
                raise RankError(cause)


def _is_lost(error: RuntimeError) -> bool:
    """Whether torch says that another process is gone or late."""
    text = str(error).lower()
    signs = ("connection", "timed out", "timeout", "gloo", "nccl", "broken pipe", "socket", "peer")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
