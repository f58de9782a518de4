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

import torch
from torch import Tensor

Objective = Callable[[Sequence[int], Tensor], tuple[list[float], Tensor]]
"""objective(problems, points) -> (values, gradients): which problems, (A, D) their points; A values
and (A, D) gradients."""
Precondition = Callable[[int, Tensor], Tensor]
"""precondition(problem, vector): an approximate inverse of the problem's Hessian, symmetric and
positive definite, times a vector (D,)."""

_HISTORY = 10
_SUFFICIENT_DECREASE = 1e-4
_MAX_SHORTENINGS = 30
_NOISE = 4.0 * torch.finfo(torch.float32).eps
"""What rounding may add to a value, relative to it."""


def minimize(
    objective: Objective,
    start: Tensor,  # (P, D)
    precondition: Precondition,
    *,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, int]:
    """The minima (P, D) and the number of passes over the data.

    A problem is solved when no entry of its gradient exceeds `tolerance`, or after
    `max_iterations` steps. Steps are shortened until they decrease the value enough (Armijo);
    convexity makes every pair of the history a valid one. Nothing in it is random. Source: Nocedal
    and Wright, Numerical Optimization, 2nd ed., algorithms 3.1 and 7.4."""
    searches = [
        _Search(point, partial(precondition, problem)) for problem, point in enumerate(start)
    ]
    passes = 0
    while active := [p for p, search in enumerate(searches) if not search.solved]:
        points = torch.stack([searches[p].trial for p in active])
        values, gradients = objective(active, points)
        passes += 1
        for p, value, gradient in zip(active, values, gradients, strict=True):
            searches[p].receive(value, gradient, max_iterations, tolerance)
    return torch.stack([search.point for search in searches]), passes


class _Search:
    """One problem: where it is, and the point that it wants to see next."""

    def __init__(self, start: Tensor, precondition: Callable[[Tensor], Tensor]) -> None:
        self.point = self.trial = start
        self.solved = False
        self._precondition = precondition
        self._value = math.inf
        self._gradient: Tensor | None = None
        self._direction = start
        self._slope = 0.0
        self._step = 1.0
        self._shortenings = 0
        self._iterations = 0
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)
        self._scale: Tensor | float = 1.0

    def receive(self, value: float, gradient: Tensor, max_iterations: int, tol: float) -> None:
        """Value and gradient at `trial`: goes there, or tries a shorter step."""
        if self._gradient is not None:
            enough = self._value + _SUFFICIENT_DECREASE * self._step * self._slope
            if not value <= enough + _NOISE * abs(self._value):
                self._shorten(value)
                return
            self._remember(self.trial - self.point, gradient - self._gradient)
            self._iterations += 1
        self.point, self._value, self._gradient = self.trial, value, gradient
        if self._iterations >= max_iterations or float(gradient.abs().max()) <= tol:
            self.solved = True
        else:
            self._aim()

    def _shorten(self, value: float) -> None:
        """To the minimum of the parabola through what is known, within a tenth and a half."""
        excess = value - self._value - self._step * self._slope
        best = -0.5 * self._slope * self._step / excess if math.isfinite(excess) else 0.0
        self._step *= min(max(best, 0.1), 0.5)
        self._shortenings += 1
        self.solved = self._shortenings > _MAX_SHORTENINGS  # only rounding errors are left
        self.trial = self.point + self._step * self._direction

    def _remember(self, moved: Tensor, turned: Tensor) -> None:
        curvature = moved @ turned
        if float(curvature) > 0.0:  # as it always is, but for rounding
            self._pairs.append((moved, turned, 1.0 / curvature))
            self._scale = curvature / (turned @ self._precondition(turned))

    def _aim(self) -> None:
        assert self._gradient is not None
        self._direction = -self._inverse_hessian_times(self._gradient)
        self._slope = float(self._direction @ self._gradient)
        if not self._slope < 0.0:
            self._pairs.clear()
            self._scale = 1.0
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
        vector = self._scale * self._precondition(vector)
        for moved, turned, inverse in self._pairs:
            vector = vector + (weights.pop() - inverse * (turned @ vector)) * moved
        return vector
