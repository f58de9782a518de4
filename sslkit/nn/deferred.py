"""Metrics that are computed only where somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Deferred(Mapping[str, T]):
    """A mapping that calls `compute` once, when it is first read.

    For `StepOutput.metrics`: a contrastive accuracy costs a second similarity matrix, which is
    wasted on the steps that are not logged. On those that are, the engine reads it right after
    `Method.objective`, so `compute` finds queue, teacher and parameters as the loss found them.
    It must hold on to detached tensors only: elsewhere it may be read later, or never.
    """

    def __init__(self, compute: Callable[[], Mapping[str, T]]) -> None:
        self._compute = compute
        self._values: Mapping[str, T] | None = None

    def _read(self) -> Mapping[str, T]:
        if self._values is None:
            self._values = self._compute()
        return self._values

    def __getitem__(self, name: str) -> T:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
