"""The embeddings of one fixed batch, for evaluators that watch a method between its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.api import Apart, Batch, Method, MethodEmbeddings
from sslkit.nn.compute import Compute
from sslkit.nn.modes import modes_kept
from sslkit.nn.shared_statistics import over_ranks, shareable_layers
from sslkit.parallel.division import Division
from sslkit.randomness import seeded

from .step import Embeddings, full_precision, piece_of

if TYPE_CHECKING:
    from .training import Loader

_MOST_POSITIONS = 16
"""Positions (views, patches) of an entry that is watched though nothing judges it."""


class EmbeddingMonitor(MethodEmbeddings):
    """Embeds the first batch of a run as a training step does: its views, in training mode, with
    the statistics of the batch. Evaluation mode would show running statistics instead, which lag
    behind by many steps at the start of training. Nothing is changed: neither buffers nor modes
    nor generators; and the batch is the same after a resume."""

    def __init__(
        self,
        loader: Loader,
        method: Method,
        compute: Compute,
        *,
        seed: int,
        division: Division,
        make_untrained: Callable[[], Method],
    ) -> None:
        """loader: of training batches, of this rank's share where there are several. division: of a
        batch; its first micro-batch is embedded. make_untrained: the method before its first step,
        on the device."""
        self._loader = loader
        self._method = method
        self._compute = compute
        self._seed = seed
        self._division = division
        self._make_untrained = make_untrained
        self._now: Embeddings | None = None
        self._untrained: Embeddings | None = None

    @property
    def must_not_collapse(self) -> Mapping[str, Apart] | None:
        """See `Method.must_not_collapse`."""
        return self._method.must_not_collapse

    def now(self) -> Embeddings:
        """The embeddings by the method as it is."""
        return self._embed(self._method) if self._now is None else self._now

    def untrained(self) -> Embeddings:
        """The embeddings by the method before its first step; made once."""
        if self._untrained is None:
            self._untrained = self._embed(self._make_untrained())
        return self._untrained

    def _embed(self, method: Method) -> Embeddings:
        world = self._compute.world
        part = piece_of(next(self._loader.epoch(0)), self._division, 0)
        rank = [world.rank] if world.rank else []
        with seeded(self._seed, "evaluation", "embeddings", *rank):
            if world.group is None:
                return self._watched(embed_unchanged(method, self._compute, part))
            with world.watching(), over_ranks(shareable_layers(method), world.group):
                found = self._watched(embed_unchanged(method, self._compute, part))
        everywhere = world.gather_rows(found)
        return everywhere if world.is_first else {}

    def _watched(self, found: Embeddings) -> Embeddings:
        return worth_watching(found, self.must_not_collapse)

    @contextmanager
    def on_all_ranks(self) -> Iterator[None]:
        """With several ranks: all of them embed now, each its share of the images, what rank 0 is
        asked for inside. One process embeds when it is asked."""
        if self._compute.world.size == 1:
            yield
            return
        self._compute.world.barrier()
        try:
            self._now = self._embed(self._method)
            self.untrained()
            yield
        finally:
            self._now = None


def worth_watching(found: Embeddings, named: Mapping[str, Apart] | None) -> Embeddings:
    """Without entries of many positions that `must_not_collapse` does not name. Scores of patches
    may fill the memory of a rank, and what is watched is that of all ranks on each, and is kept."""
    if named is None:
        return found
    return {
        name: value
        for name, value in found.items()
        if name in named or math.prod(value.shape[1:-1]) <= _MOST_POSITIONS
    }


def embed_unchanged(method: Method, compute: Compute, batch: Batch) -> Embeddings:
    """The method's embeddings in training mode, without gradient; its modes and buffers are put
    back to what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
    views: tuple[Tensor, ...] = tuple(compute.layout(view) for view in batch.views)
    try:
        with modes_kept(method), torch.no_grad(), compute.autocast():
            method.train()
            found = method.embed(replace(batch, views=views))
        return {name: full_precision(value) for name, value in found.items()}
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
