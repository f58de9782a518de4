"""L-BFGS on several smooth convex problems that share their data.

Each problem has a direction, a step length and a history of its own. Only the objective is
evaluated for all of them together: that is where the time goes, and one pass over the data serves
every problem that is not solved yet.

Shapes: P problems, D parameters of each, A problems that are evaluated.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Sequence[int], Tensor], tuple[list[float], Tensor]]
"""objective(problems, points) -> (values, gradients): which problems, (A, D) their points; A values
and (A, D) gradients."""
Precondition = Callable[[int, Tensor], Tensor]
"""precondition(problem, vector): an approximate inverse of the problem's Hessian where the search
now is, symmetric and positive definite, times a vector (D,)."""
Solved = Callable[[int, float, Tensor], bool]
"""solved(problem, value, gradient): whether the problem is close enough to its minimum."""

_HISTORY = 10
_SUFFICIENT_DECREASE = 1e-4
_MAX_SHORTENINGS = 30
_NOISE = 4.0 * torch.finfo(torch.float32).eps
"""What rounding may add to a value, relative to it."""
_STALLED = 10
"""Steps without a decrease beyond rounding, one after the other, after which a search ends."""


class Minima(NamedTuple):
    """Where the searches ended."""

    points: Tensor  # (P, D)
    passes: int
    """Over the data."""
    found: tuple[bool, ...]
    """Whether each problem is solved, at least as far as float32 tells; not where its
    iterations were used up."""


def minimize(
    objective: Objective,
    start: Tensor,  # (P, D)
    precondition: Precondition,
    solved: Solved,
    *,
    max_iterations: int,
) -> Minima:
    """All problems side by side.

    A search ends when its problem is `solved`, or after `max_iterations` steps. Steps are shortened
    until they decrease the value enough (Armijo); convexity makes every pair of the history a valid
    one. Nothing in it is random. Source: Nocedal and Wright, Numerical Optimization, 2nd ed.,
    algorithms 3.1 and 7.4."""
    searches = [
        _Search(point, partial(precondition, problem), partial(solved, problem), max_iterations)
        for problem, point in enumerate(start)
    ]
    passes = 0
    while active := [p for p, search in enumerate(searches) if not search.ended]:
        points = torch.stack([searches[p].trial for p in active])
        values, gradients = objective(active, points)
        passes += 1
        for p, value, gradient in zip(active, values, gradients, strict=True):
            searches[p].receive(value, gradient)
    points = torch.stack([search.point for search in searches])
    return Minima(points, passes, tuple(search.found for search in searches))


class _Search:
    """One problem: where it is, and the point that it wants to see next."""

    def __init__(
        self,
        start: Tensor,
        precondition: Callable[[Tensor], Tensor],
        is_solved: Callable[[float, Tensor], bool],
        max_iterations: int,
    ) -> None:
        self.point = self.trial = start
        self.ended = self.found = False
        self._precondition = precondition
        self._is_solved = is_solved
        self._max_iterations = max_iterations
        self._value = math.inf
        self._gradient: Tensor | None = None
        self._direction = start
        self._slope = 0.0
        self._step = 1.0
        self._shortenings = 0
        self._iterations = self._stalls = 0
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)

    def receive(self, value: float, gradient: Tensor) -> None:
        """Value and gradient at `trial`: goes there, or tries a shorter step."""
        if self._gradient is not None:
            enough = self._value + _SUFFICIENT_DECREASE * self._step * self._slope
            if not value <= enough + _NOISE * abs(self._value):
                self._shorten(value)
                return
            self._remember(self.trial - self.point, gradient - self._gradient)
            self._iterations += 1
            stalls = self._value - value <= _NOISE * abs(self._value)
            self._stalls = self._stalls + 1 if stalls else 0
        self.point, self._value, self._gradient = self.trial, value, gradient
        self.found = self._stalls >= _STALLED or self._is_solved(value, gradient)
        self.ended = self.found or self._iterations >= self._max_iterations
        if not self.ended:
            self._aim()

    def _shorten(self, value: float) -> None:
        """To the minimum of the parabola through what is known, within a tenth and a half."""
        excess = value - self._value - self._step * self._slope
        best = -0.5 * self._slope * self._step / excess if math.isfinite(excess) else 0.0
        self._step *= min(max(best, 0.1), 0.5)
        self._shortenings += 1
        self.ended = self.found = self._shortenings > _MAX_SHORTENINGS  # only rounding is left
        self.trial = self.point + self._step * self._direction

    def _remember(self, moved: Tensor, turned: Tensor) -> None:
        curvature = moved @ turned
        if float(curvature) > 0.0:  # as it always is, but for rounding
            self._pairs.append((moved, turned, 1.0 / curvature))

    def _aim(self) -> None:
        assert self._gradient is not None
        self._direction = -self._inverse_hessian_times(self._gradient)
        self._slope = float(self._direction @ self._gradient)
        if not self._slope < 0.0:
            self._pairs.clear()
            self._direction = -self._precondition(self._gradient)
            self._slope = float(self._direction @ self._gradient)
        self._step, self._shortenings = 1.0, 0
        self.trial = self.point + self._direction

    def _inverse_hessian_times(self, vector: Tensor) -> Tensor:
        """The two-loop recursion."""
        weights = []
        for moved, turned, inverse in reversed(self._pairs):
            weights.append(inverse * (moved @ vector))
            vector = vector - weights[-1] * turned
        vector = self._scaled(vector)
        for moved, turned, inverse in self._pairs:
            vector = vector + (weights.pop() - inverse * (turned @ vector)) * moved
        return vector

    def _scaled(self, vector: Tensor) -> Tensor:
        """The first approximation, scaled by the curvature along the last step."""
        found = self._precondition(vector)
        if not self._pairs:
            return found
        _, turned, inverse = self._pairs[-1]
        return found / (inverse * (turned @ self._precondition(turned)))
