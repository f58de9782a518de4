"""Randomness as a pure function of (seed, stream, epoch, sample index).

Sample-level choices (order, crops, colours, masks) never come from a stateful generator: each is
Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of a key made
from the seed and the stream's name, and a counter made from the sample index and the epoch. The
result does not depend on the batch a sample is in, on the number of threads or ranks, or on the
device, and a resumed run needs no generator state.

Shapes: B samples, K values per sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.deprecation import removed_names

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def stream_key(seed: int, *names: str | int) -> tuple[int, int]:
    """The Philox key (two 32-bit words) of a named stream."""
    text = "\0".join(map(str, (seed, *names))).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> list[Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words; broadcasts; four words out.

    The 64-bit products wrap around in int64, which leaves both 32-bit halves as they are.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _MASK, (p1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


@dataclass(frozen=True)
class SampleRandom:
    """Random values for the samples of a batch, keyed by the sample and never by its position.

    Two calls with the same name return the same values; use one name for each purpose.
    """

    seed: int
    stream: str
    epoch: int
    indices: Tensor  # (B,) int64, positions in the data set
    _ready: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def substream(self, *names: str | int) -> SampleRandom:
        """An independent source for the same samples, for example one per view."""
        stream = "/".join((self.stream, *map(str, names)))
        return SampleRandom(self.seed, stream, self.epoch, self.indices)

    def select(self, rows: slice | Tensor) -> SampleRandom:
        """The same randomness for some of the samples."""
        return SampleRandom(self.seed, self.stream, self.epoch, self.indices[rows])

    def prepare(self, counts: Mapping[str, int]) -> SampleRandom:
        """The same source with the words of several names (name -> count) computed in one pass.
        It returns the same values; it saves the cost of many small operations."""
        device = self.indices.device
        blocks = {name: (count + 3) // 4 for name, count in counts.items()}
        keys = [
            stream_key(self.seed, self.stream, name) for name, n in blocks.items() for _ in range(n)
        ]
        key = torch.tensor(keys, device=device).view(-1, 2).unbind(1)
        block = torch.tensor([i for n in blocks.values() for i in range(n)], device=device)
        words = self._words(block, (key[0], key[1]))
        parts = torch.split(words, [4 * n for n in blocks.values()], dim=1)
        ready = dict(zip(blocks, parts, strict=True))
        return SampleRandom(self.seed, self.stream, self.epoch, self.indices, ready)

    def bits(self, name: str, count: int) -> Tensor:
        """(B, count) int64 tensor of uniform 32-bit words."""
        ready = self._ready.get(name)
        if ready is not None and ready.shape[1] >= count:
            return ready[:, :count]
        device = self.indices.device
        block = torch.arange((count + 3) // 4, device=device)
        return self._words(block, stream_key(self.seed, self.stream, name))[:, :count]

    def _words(self, block: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
        """(B, 4 * blocks) words; block: (blocks,) counter of each group of four words."""
        index, block = self.indices[:, None], block[None, :]
        counter = (index & _MASK, (index >> 32) & _MASK, torch.full_like(block, self.epoch), block)
        return torch.stack(philox(counter, key), dim=-1).flatten(1)

    def uniform(self, name: str, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, count) float32 tensor, uniform in [low, high): 24 random bits per value."""
        unit = (self.bits(name, count) >> 8).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, name: str, count: int, high: int) -> Tensor:
        """(B, count) int64 tensor, uniform in {0, ..., high - 1}; bias below high / 2**32."""
        return (self.bits(name, count) * high) >> 32

    def permutation(self, name: str, count: int) -> Tensor:
        """(B, count) int64 tensor: a random permutation of 0..count-1 for each sample."""
        return self.bits(name, count).argsort(dim=1, stable=True)


_SORTED = 1 << 16
"""Orders of up to so many are made as a whole, by sorting random words: every order is then equally
likely. Larger ones are computed where they are needed."""
_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Order:
    """A random order of 0..size-1 that (seed, stream, epoch) choose, in memory of what is asked of
    it: the place of a sample does not need those before it. `order[start:stop]` is an int64 tensor
    on the CPU, (stop - start,)."""

    def __init__(self, seed: int, epoch: int, size: int, stream: str = "order") -> None:
        self._size = size
        self._sorted = _sorted_order(seed, epoch, size, stream) if size <= _SORTED else None
        self._keys = [stream_key(seed, stream, epoch, number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: slice) -> Tensor:
        if self._sorted is not None:
            return self._sorted[places]
        wanted = np.arange(*places.indices(self._size), dtype=np.uint64)
        return torch.from_numpy(permuted(wanted, self._size, self._keys).astype(np.int64))


def _sorted_order(seed: int, epoch: int, size: int, stream: str) -> Tensor:
    index = torch.arange(size)
    zero = torch.zeros(1, dtype=torch.int64)
    words = philox((index, zero, torch.full_like(zero, epoch), zero), stream_key(seed, stream))
    # 63 bits: ties, which a stable sort would break towards low indices, do not happen in practice.
    return ((words[0] << 31) | (words[1] >> 1)).argsort(stable=True)


def permuted(
    places: NDArray[np.uint64], size: int, keys: Sequence[tuple[int, int]]
) -> NDArray[np.uint64]:
    """Where a random permutation of 0..size-1 takes some places, each from it alone.

    keys: two 32-bit words for each round. A place is a row and a column of the smallest rectangle
    that is about as high as wide and holds `size`; rounds turn rows by a hash of the column and
    columns by a hash of the row, a Feistel network (Luby and Rackoff 1988) over a rectangle (Black
    and Rogaway 2002). What falls on one of the few cells beyond `size` walks on until it does not.
    Integers only: the same everywhere. size: below 2**62."""
    height = math.isqrt(max(size - 1, 0)) + 1
    width = -(-size // height)
    found = _rounds(places, height, width, keys)
    beyond = np.flatnonzero(found >= size)
    while len(beyond):
        found[beyond] = _rounds(found[beyond], height, width, keys)
        beyond = beyond[found[beyond] >= size]
    return found


def _rounds(
    places: NDArray[np.uint64], height: int, width: int, keys: Sequence[tuple[int, int]]
) -> NDArray[np.uint64]:
    sides = np.array([height, width], dtype=np.uint64)
    parts = list(np.divmod(places, sides[1:]))
    for number, (low, high) in enumerate(keys):
        turned, by = number % 2, 1 - number % 2
        key = np.array([(high << 32) | low], dtype=np.uint64)
        parts[turned] = (parts[turned] + _mixed(parts[by], key)) % sides[turned : turned + 1]
    rows, columns = parts
    moved: NDArray[np.uint64] = rows * sides[1:] + columns
    return moved


def _mixed(values: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 32 bits of each value: the finaliser of SplitMix64 (Steele et al. 2014)."""
    golden, first, second = (np.array([c], dtype=np.uint64) for c in (_GOLDEN, *_MIX))
    x = (values + golden) * first ^ key
    x = (x ^ (x >> np.uint64(30))) * first
    x = (x ^ (x >> np.uint64(27))) * second
    mixed: NDArray[np.uint64] = (x ^ (x >> np.uint64(31))) >> np.uint64(32)
    return mixed


def random_subset(seed: int, stream: str, total: int, count: int) -> Tensor:
    """(count,) int64 tensor: ascending positions in 0..total-1 that depend on the seed and the
    stream alone; all of them where there are no more than `count`."""
    index = torch.arange(total)
    if total <= count:
        return index
    words = SampleRandom(seed, stream, 0, index).bits("subset", 2)
    order = ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)
    return order[:count].sort().values


def shuffled(rows: Tensor, seed: int) -> Tensor:
    """The rows (N, ...) in a random order that depends on the seed alone."""
    return rows[Order(seed, 0, len(rows))[:]]


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Runs library randomness (initialisation, dropout, drop path) under its own named seed and
    leaves the global generators as they were."""
    low, high = stream_key(seed, *names)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        _set_seed((high << 31) ^ low)
        yield


def _set_seed(seed: int) -> None:
    """What `torch.manual_seed` does for the devices in use. It also queues a seed for GPUs that are
    not, with a copy of the call stack, which costs more than the rest of a step's book-keeping."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


__getattr__ = removed_names(
    "sslkit.randomness", {"epoch_order": "Order(seed, epoch, size)[start:stop]"}
)
