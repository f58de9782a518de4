"""Training a network on labelled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

B = TypeVar("B")


class SupervisedTraining(Generic[B]):
    """The loop of every evaluator that trains a network: the rules of a step, its loss, the step,
    for one batch after the other. What a batch is, only the loss knows.

        training = SupervisedTraining(optimizer, loss, before_step)
        for epoch in range(epochs):
            mean = training.epoch(batches.epoch(epoch))

    The mode of the network, autocast and what to do about a loss that is not finite are the
    caller's."""

    def __init__(
        self,
        optimizer: Optimizer,
        loss: Callable[[B], Tensor],
        before_step: Callable[[int], None] | None = None,
    ) -> None:
        """loss: of a batch, a scalar with gradient. before_step: sets the rules of the parameter
        groups for the step that follows so many finished ones; None: they stay."""
        self._optimizer = optimizer
        self._loss = loss
        self._before_step = before_step
        self.finished = 0
        """Steps so far."""

    def steps(self, batches: Iterable[B]) -> Iterator[Tensor]:
        """A step for each batch, as it is asked for; gives its loss, on its device, so that the
        device is waited for by none but who reads it."""
        for batch in batches:
            if self._before_step is not None:
                self._before_step(self.finished)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self._loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.finished += 1
            yield loss.detach()

    def epoch(self, batches: Iterable[B]) -> float:
        """A step for each batch; the mean loss, which alone is read back. Raises ValueError if
        there is no batch."""
        before, total = self.finished, None
        for loss in self.steps(batches):
            total = loss if total is None else total + loss
        if total is None:
            raise ValueError("no batches to train on")
        return float(total) / (self.finished - before)
