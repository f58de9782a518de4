"""Several processes as a `World`, on torch.distributed: gloo on the CPU, NCCL between GPUs.

Short meetings (`any`, `gather`, the reduction of gradients) are collectives and end after
`SSLKIT_RANK_TIMEOUT` seconds; a rank that dies ends them at once. What takes rank 0 an unknown time
(`once`: an evaluation) is waited for at the store, for as long as that rank gives signs of life.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from sslkit import environment_variables as variables
from sslkit.errors import RankError

from .collectives import all_gather, all_reduce
from .launch import Launch
from .main_thread import interrupt_main_thread
from .packing import packed, unpacked
from .parent_line import ToParent
from .store import BEAT_S, Store
from .world import World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_GRACE_S = 8.0
"""How long a rank that lost another one waits for that one's reason, rank 0 at the end for the
others, and a main thread may take to notice that another rank has ended."""
_LAST_S = 12.0
"""How long it may take to end once it has noticed: rank 0 has a tracker to tell ..."""
_ALONE_S = 45.0
"""... and what it does while the others wait for it: saving, say."""


class Processes(World):
    """This process among several that `torchrun`, SLURM or `sslkit run --nproc` have started."""

    def __init__(self, launch: Launch) -> None:
        """Meets the others. Raises RankError where not all of them come."""
        self.rank, self.size = launch.rank, launch.size
        self.local_rank, self.local_size = launch.local_rank, launch.local_size
        variables.MASTER_ADDR.set_default(launch.master_address)
        variables.MASTER_PORT.set_default(str(launch.master_port))
        self.timeout = timedelta(seconds=variables.rank_timeout_s())
        self._parent = ToParent()
        self._alone = self._noticed = False
        """Whether rank 0 does what the others wait for; whether what ended the run was heard of."""
        self._ended = threading.Event()
        self._meetings = 0
        try:
            with self.watching("while the processes met"):
                self._store = Store(self.rank, self.size, self.timeout, self._parent_says)
                threading.Thread(target=self._watch, name="sign of life", daemon=True).start()
                self.group = self._all = self._meet_torch()
        except RankError as error:
            self._ended.set()
            raise RankError(str(error), said=not self._speaks()) from error
        except BaseException:
            self._ended.set()
            raise

    def _meet_torch(self) -> dist.ProcessGroup:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=self._store.torch,
            rank=self.rank,
            world_size=self.size,
            timeout=self.timeout,
        )
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    @cached_property
    def gradient_group(self) -> ProcessGroup:
        with self.watching("when the first step began"):
            return cast("ProcessGroup", dist.new_group(timeout=self.timeout))

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

    def _meet(self) -> None:
        """Returns when all ranks have come here, however long that takes, as long as each of them
        gives signs of life."""
        self._meetings += 1
        key, pause = f"meeting/{self._meetings}", 0.001
        with self.watching():
            self._store.add(key, 1)
            while self._store.add(key, 0) < self.size:
                time.sleep(pause)
                pause = min(1.5 * pause, 0.1)
                if (cause := self._end()) is not None:
                    self._noticed = True
                    raise RankError(cause)

    # --- Ends ---------------------------------------------------------------------------------

    @contextmanager
    def watching(self, when: str = "") -> Iterator[None]:
        """Turns what torch raises where another rank is gone, or does not come, into a RankError
        that says why."""
        try:
            yield
        except RankError:
            self._noticed = True
            raise
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise RankError(self._why_lost(error, when)) from error

    @contextmanager
    def passing_on(
        self, asked: Callable[[], str | None], tell: Callable[[str], None]
    ) -> Iterator[None]:
        self._store.wish, self._store.on_wish = asked, tell if self.is_first else None
        try:
            yield
        finally:
            self._store.wish, self._store.on_wish = lambda: None, None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """What ends this rank is told to the others, who end by it too. Rank 0 says it to the user;
        the others are silent, unless rank 0 is gone."""
        try:
            yield
        except BaseException as error:
            if self._ended.is_set():  # all has been said by a block within this one
                raise
            self._hurry()
            self._tell(f"ended with rank {self.rank}: {str(error) or type(error).__name__}")
            speaks = self._speaks()
            self._leave()
            if speaks:
                raise
            code = getattr(error, "exit_code", 1)
            raise RankError(str(error), said=True, exit_code=code) from error
        if not self._ended.is_set():
            self._leave()

    def _speaks(self) -> bool:
        """Whether this rank tells the user: rank 0. Where it is gone, the parent chooses one;
        without a parent the first rank of each machine that is not known to be gone as well."""
        if self._parent_says() is not None:
            return any(gone.speak for gone in self._parent.gone.values())
        if not hasattr(self, "_store"):  # they have not met: with a parent rank 0 lives
            return self.is_first or not self._parent.is_there
        self._store.end()  # which may find that rank 0 is silent
        if 0 not in self._store.lost:
            return self.is_first
        first = self.rank - self.local_rank
        here = set(range(first, first + self.local_size)) - self._store.lost
        return self.rank == min(here, default=self.rank)

    def _end(self) -> str | None:
        """What ended the run, as far as it is known; None where it goes on."""
        if (said := self._parent_says()) is not None:
            self._store.lost.update(self._parent.gone)
            return said
        return self._store.end()

    def _parent_says(self) -> str | None:
        """Which rank ended without a word, as the parent has seen; None where it has not."""
        self._parent.listen()
        return next((str(gone) for gone in self._parent.gone.values()), None)

    def _hurry(self) -> None:
        """The run ends: the store is waited for no longer than any other rank."""
        self._noticed = True
        self._store.patience_s = min(self._store.patience_s, _GRACE_S)

    def _why_lost(self, error: Exception, when: str) -> str:
        if not hasattr(self, "_store"):
            return self._parent_says() or f"another process {_what(error, self.timeout)} {when}"
        self._hurry()
        before, until = self._signs(), time.monotonic() + _GRACE_S
        while time.monotonic() < until:
            if self._end() is None:
                with suppress(Exception):
                    self._store.look()
            if (cause := self._end()) is not None:
                return cause
            time.sleep(0.1)
        return self._name_lost(error, before, when)

    def _name_lost(self, error: Exception, before: Sequence[int], when: str) -> str:
        """What can be said of a rank that left no cause. before: signs of life some time ago."""
        pairs = zip(before, self._signs(), strict=False)
        lost = {rank for rank, (then, now) in enumerate(pairs) if then == now} - {self.rank}
        who = f"rank {', '.join(map(str, sorted(lost)))}" if lost else "another process"
        cause = f"{who} {_what(error, self.timeout)} {when}".rstrip()
        self._tell(cause, lost)
        return cause

    def _tell(self, cause: str, lost: Iterable[int] = ()) -> None:
        """Leaves the cause for all, where there is none yet."""
        try:
            self._store.tell(cause, lost)
        except Exception:  # the store went with rank 0
            self._store.lose_first()

    def _signs(self) -> list[int]:
        """The signs of life that each rank has given; empty where the store is gone."""
        with suppress(Exception):
            return self._store.signs()
        return []

    def _leave(self) -> None:
        """Ends the meeting so that nobody waits. The store is rank 0's, who goes when the others
        have left or heard why: one that waits in a collective learns of the end by its going."""
        with suppress(Exception):
            dist.destroy_process_group()
        with suppress(Exception):
            self._store.leave()
            until = time.monotonic() + _GRACE_S
            while self.is_first and time.monotonic() < until:
                away = self._store.add("left", 0), self._store.add("heard", 0) + 1
                if max(away) >= self.size - len(self._store.lost):
                    break
                time.sleep(0.02)
        self._ended.set()
        self._store.close()

    # --- The thread that watches ----------------------------------------------------------------

    def _watch(self) -> None:
        """Gives signs of life, and looks for the end of others: the main thread may be busy with
        what the others wait for, or hang."""
        since = None
        self._parent.beat()  # at once: the parent counts from the first one
        while not self._ended.wait(BEAT_S):
            self._parent.beat()
            self._store.beat()
            if (cause := self._end()) is None:
                continue
            if since is None:
                since = time.monotonic()
                if self._alone:  # nobody waits for it any more
                    interrupt_main_thread()
            patience = _ALONE_S if self._alone else _LAST_S if self._noticed else _GRACE_S
            if time.monotonic() - since > patience:
                self._end_hanging(cause)

    def _end_hanging(self, cause: str) -> None:
        """Ends this process, whose main thread does not do it. What is on disk is whole at any
        moment."""
        if self._speaks():
            print(f"error: {cause}", file=sys.stderr, flush=True)
        os._exit(1)


def _what(error: Exception, timeout: timedelta) -> str:
    """What became of a rank, by what torch says."""
    late = any(sign in str(error).lower() for sign in ("timed out", "timeout"))
    return f"did not come within {timeout.seconds} s" if late else "was lost"


def _is_lost(error: RuntimeError) -> bool:
    """Whether torch says that another process is gone or late."""
    text = str(error).lower()
    signs = ("connection", "timed out", "timeout", "gloo", "nccl", "broken pipe", "socket", "peer")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
