"""The embeddings of one fixed batch, for evaluators that watch a method between its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.api import Apart, Batch, Method, MethodEmbeddings
from sslkit.nn.compute import Compute
from sslkit.nn.modes import modes_kept
from sslkit.randomness import seeded

from .step import Embeddings, full_precision

if TYPE_CHECKING:
    from .training import Loader


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
        images: int,
        make_untrained: Callable[[], Method],
    ) -> None:
        """images: how many of the batch, at most what goes through the networks at a time.
        make_untrained: the method before its first step, on the device."""
        self._loader = loader
        self._method = method
        self._compute = compute
        self._seed = seed
        self._images = images
        self._make_untrained = make_untrained
        self._untrained: Embeddings | None = None

    @property
    def must_not_collapse(self) -> Mapping[str, Apart] | None:
        """See `Method.must_not_collapse`."""
        return self._method.must_not_collapse

    def now(self) -> Embeddings:
        """The embeddings by the method as it is."""
        return self._embed(self._method)

    def untrained(self) -> Embeddings:
        """The embeddings by the method before its first step; made once."""
        if self._untrained is None:
            self._untrained = self._embed(self._make_untrained())
        return self._untrained

    def _embed(self, method: Method) -> Embeddings:
        waited = self._loader.wait_s
        batch = next(self._loader.epoch(0)).select(slice(0, self._images))
        self._loader.wait_s = waited  # that wait was not training's
        with seeded(self._seed, "evaluation", "embeddings"):
            return embed_unchanged(method, self._compute, batch)


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
