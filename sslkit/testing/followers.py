"""Which weights of a method follow others, as a teacher's do, and which of these matter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sslkit.api import Batch, StepOutput
from sslkit.engine.training import Training

from .method_bench import MethodBench
from .small_runs import ROUNDING, Tensors, batches, copied, distance, take_steps


class Followers:
    """Finds them in float64, in a training some steps after its start."""

    def __init__(self, bench: MethodBench) -> None:
        self._bench = bench
        self._t: Training = bench.runs.training(torch.float64)
        take_steps(self._t, 2)
        bench.ready(self._t)
        self._batch: Batch = next(batches(self._t))
        self._output = self._step()
        self._trained: Mapping[str, Tensor] = {
            name: parameter
            for group in self._t.method.param_groups()
            for name, parameter in group.params
        }
        self._start = copied(self._t.method.state_dict())

    def trained(self) -> list[str]:
        """Parameters that the optimiser trains, and that `before_step` and `after_step` make follow
        other weights all the same."""
        before, after = self._hooked()
        changed = {n for n in self._trained if distance(after[n], before[n]) > 0.0}
        # A weight that equals the one that it follows is moved only where others are shifted.
        shifted, hooked = self._hooked(shift=0.5)
        changed |= {n for n in self._trained if distance(hooked[n], shifted[n]) > ROUNDING}
        if not changed:
            return []
        _, followed = self._hooked(shift=0.5, fixed=frozenset(changed))
        return sorted(n for n in changed if distance(followed[n], after[n]) > ROUNDING)

    def idle(self) -> list[str]:
        """Parts of the method with parameters that follow others and have no part in the loss."""
        before, after = self._hooked(shift=0.5)
        parts: dict[str, list[str]] = {}
        for name, _ in self._t.method.named_parameters():
            if name not in self._trained and distance(after[name], before[name]) > 0.0:
                parts.setdefault(name.partition(".")[0], []).append(name)
        return [part for part, names in parts.items() if not self._matter(names)]

    def _matter(self, names: list[str]) -> bool:
        """Whether the loss is another one where these parameters are."""
        parameters = dict(self._t.method.named_parameters())
        with torch.no_grad():
            self._restore()
            loss = float(self._step().loss)
            self._restore()
            for name in names:
                parameters[name].mul_(1.5).add_(0.1)
            other = float(self._step().loss)
            self._restore()
        return other != loss

    def _hooked(
        self, shift: float = 0.0, fixed: frozenset[str] = frozenset()
    ) -> tuple[Tensors, Tensors]:
        """The parameters before the hooks and after them, in a state whose trained parameters, but
        for the fixed ones, are shifted, each by an amount of its own."""
        with torch.no_grad():
            self._restore()
            for number, (name, parameter) in enumerate(self._trained.items()):
                if name not in fixed:
                    parameter.add_(shift * (1.0 + number / len(self._trained) + parameter.abs()))
            before = self._parameters()
            self._bench.hooks(self._t, self._output)
            after = self._parameters()
            self._restore()
        return before, after

    def _parameters(self) -> Tensors:
        return copied({**dict(self._t.method.named_parameters()), **self._trained})

    def _step(self) -> StepOutput:
        return self._bench.objective(self._t, self._bench.embed(self._t, self._batch), self._batch)

    def _restore(self) -> None:
        self._t.method.load_state_dict(self._start)
