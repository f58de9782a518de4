"""Calling callbacks: what they are given is guarded, and what they return is logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sslkit.api import Batch, Callback, Method, Progress, RunView
from sslkit.errors import PluginError
from sslkit.parallel.sharding import is_sharded
from sslkit.randomness import seeded

Numbers = dict[str, float]
"""Name in the log -> value."""


class Watched(Protocol):
    """The training, as far as callbacks are concerned."""

    @property
    def run(self) -> RunView: ...

    @property
    def method(self) -> Method: ...

    @property
    def seed(self) -> int: ...

    @property
    def progress(self) -> Progress: ...


class NotWhole:
    """In place of a method whose weights lie in parts: the first rank alone cannot read them."""

    def __getattr__(self, name: str) -> Any:
        raise PluginError(
            f"a callback asks for '{name}' of the method, of whose weights each process has a part "
            "with train.parallel=fsdp; leave it out, or set train.parallel=ddp"
        )


class Callbacks:
    """The callbacks of a run, in the order of the recipe.

    They are called without gradients and under random numbers of their own. What they could change
    by accident is held against what it was: memory of parameters, buffers, gradients and views, and
    the modes of modules. PluginError where something differs, before it has an effect."""

    def __init__(self, callbacks: Sequence[tuple[str, Callback]] = ()) -> None:
        """callbacks: name in the recipe, and callback. The second of one name is `name-2`."""
        self._named: dict[str, Callback] = {}
        for name, callback in callbacks:
            count = sum(other.partition("-")[0] == name for other in self._named)
            self._named[f"{name}-{count + 1}" if count else name] = callback
        self._of_gradients: Numbers = {}

    def __len__(self) -> int:
        return len(self._named)

    def on_start(self, t: Watched) -> None:
        """See `Callback.on_start`."""
        in_parts = any(is_sharded(parameter) for parameter in t.method.parameters())
        method: Any = NotWhole() if in_parts else t.method
        self._call(t, "on_start", lambda each: each.on_start(t.run, method))

    def on_batch(self, t: Watched, batch: Batch) -> None:
        """See `Callback.on_batch`."""
        self._call(t, "on_batch", lambda each: each.on_batch(t.run, batch, t.progress), batch)

    def on_gradients(self, t: Watched) -> None:
        """See `Callback.on_gradients`. The numbers are kept for `take_numbers`."""
        gradients = {
            name: parameter.grad.detach()
            for name, parameter in t.method.named_parameters()
            if parameter.grad is not None
        }
        self._of_gradients = self._call(
            t, "on_gradients", lambda each: each.on_gradients(t.run, gradients, t.progress)
        )

    def take_numbers(self) -> Numbers:
        """What the callbacks found in the gradients of the step just taken, once."""
        found, self._of_gradients = self._of_gradients, {}
        return found

    def on_step(self, t: Watched, metrics: Mapping[str, float]) -> Numbers:
        """See `Callback.on_step`."""
        return self._call(t, "on_step", lambda each: each.on_step(t.run, metrics, t.progress))

    def on_evaluation(self, t: Watched, metrics: Mapping[str, float]) -> Numbers:
        """See `Callback.on_evaluation`."""
        return self._call(
            t, "on_evaluation", lambda each: each.on_evaluation(t.run, metrics, t.progress)
        )

    def _call(
        self, t: Watched, hook: str, call: Callable[[Callback], Any], batch: Batch | None = None
    ) -> Numbers:
        numbers: Numbers = {}
        for name, callback in self._named.items():
            if getattr(type(callback), hook) is getattr(Callback, hook):
                continue
            before = dict(_marks(t, batch))
            with torch.no_grad(), seeded(t.seed, "callback", name, t.progress.step):
                found = call(callback)
            who = f"callback '{name}': {type(callback).__name__}.{hook}"
            _refuse_changes(who, before, dict(_marks(t, batch)))
            numbers |= _numbers(who, name, found)
        return numbers


def _marks(t: Watched, batch: Batch | None) -> Iterator[tuple[str, object]]:
    """What changes where a callback writes: torch counts the changes of a tensor in place."""
    for name, parameter in t.method.named_parameters():
        yield f"the parameter {name}", (id(parameter), parameter._version)
        gradient = parameter.grad
        yield f"the gradient of {name}", gradient is None or (id(gradient), gradient._version)
    for name, buffer in t.method.named_buffers():
        yield f"the buffer {name}", (id(buffer), buffer._version)
    for name, module in t.method.named_modules():
        yield f"the mode of {name or 'the method'}", module.training
    for number, view in enumerate(batch.views if batch is not None else ()):
        yield f"view {number} of the batch", view._version
    if batch is not None and batch.labels is not None:
        yield "the labels of the batch", batch.labels._version


def _refuse_changes(who: str, before: Mapping[str, object], after: Mapping[str, object]) -> None:
    for what in sorted(before.keys() | after.keys()):
        if before.get(what) != after.get(what):
            raise PluginError(
                f"{who} changed {what}; a callback only watches: work on a copy, such as "
                "tensor.clone(), or write a method"
            )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _numbers(who: str, name: str, found: Any) -> Numbers:
    """The numbers that a hook returned, under their names in the log."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise PluginError(
            f"{who} gave a {type(found).__name__}; valid is a mapping of a name to a number, or "
            "nothing"
        )
    numbers: Numbers = {}
    for key, value in found.items():
        is_number = isinstance(value, (int, float)) or (
            isinstance(value, Tensor) and value.numel() == 1
        )
        if not isinstance(key, str) or not is_number:
            raise PluginError(
                f"{who} gave {key!r} as a {_kind(value)}; valid is one number under a name"
            )
        numbers[f"callback/{name}/{key}"] = float(value)
    return numbers
