"""A loss on the bench: built, and given what a method would give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sslkit.api import Loss, LossInput, Progress
from sslkit.randomness import SampleRandom, seeded

from .any_facts import FactsLaws
from .held_state import held
from .laws import LawBrokenError
from .small_runs import listed

ROWS, WIDTH, NEGATIVES = 8, 16, 12
"""Images of a batch, dimensions of an embedding where the loss takes any, negatives beside the
batch."""
_WIDEST = 1 << 16
START = Progress(0, 100, 10)


@dataclass(frozen=True)
class Value:
    """What a loss came to."""

    loss: Tensor
    gradients: Mapping[str, Tensor | None]
    """By the place of what it was given, `views[0]`; None where no gradient arrived."""


class LossBench(FactsLaws):
    """What the laws of losses share."""

    kind = "loss"

    def made(self, config: Mapping[str, Any] | None = None, *, seed: int = 0) -> Loss:
        """The loss, in training mode. config: fields with other values."""
        slot = self.subject.slot
        if config:
            slot = slot.with_config(slot.config.model_copy(update=config))
        with seeded(seed, "loss"):
            loss: Loss = slot.build()
        return loss.train()

    @property
    def requires(self) -> frozenset[str]:
        """Parts that it needs beside views."""
        return frozenset(self.subject.slot.cls.requires)

    @property
    def trained_part(self) -> str:
        """What of its input comes from the trained network."""
        return "online" if "online" in self.requires else "views"

    @cached_property
    def width(self) -> int:
        """Dimensions of the embeddings that it is given: 16, or else the first size of a tensor or
        number of its configuration that it takes embeddings of, such as that of a centre. Raises
        LawBrokenError where it takes none."""
        first: Exception | None = None
        for width in self._widths():
            try:
                self.forward(self.made(), self._inputs_of(width))
            except LawBrokenError:
                return width
            except Exception as error:  # the component's, of whatever kind
                first = first or error
            else:
                return width
        assert first is not None
        usual, *others = map(str, self._widths())
        also = f", and of {listed(others)}: none that it takes" if others else ""
        first.args = (f"{first} (of embeddings of {usual} dimensions{also})",)
        raise first

    def _widths(self) -> list[int]:
        """The usual width, then those that its tensors and numbers speak of."""
        values = list(held(self.made()).values())
        sizes = [size for v in values if isinstance(v, Tensor) for size in reversed(v.shape)]
        numbers = [value for _, value in self.subject.slot.config if type(value) is int]
        found = dict.fromkeys((WIDTH, *sizes, *numbers))
        return [width for width in found if 1 < width <= _WIDEST]

    def inputs(self, seed: int = 0, *, rows: int = ROWS, scale: float = 1.0) -> LossInput:
        """A batch: what it requires, and labels in any case, as a method has them."""
        return self._inputs_of(self.width, seed, rows=rows, scale=scale)

    def _inputs_of(
        self, width: int, seed: int = 0, *, rows: int = ROWS, scale: float = 1.0
    ) -> LossInput:
        draw = torch.Generator().manual_seed(seed)

        def drawn(number: int = 2) -> tuple[Tensor, ...]:
            return tuple(scale * torch.randn(rows, width, generator=draw) for _ in range(number))

        given: dict[str, Any] = {"views": drawn(self.subject.slot.cls.num_views or 2)}
        for part in ("online", "target", "teacher"):
            given[part] = drawn() if part in self.requires else ()
        if "negatives" in self.requires:
            given["negatives"] = scale * torch.randn(NEGATIVES, width, generator=draw)
        if "random" in self.requires:
            given["random"] = SampleRandom(seed, "loss", 0, torch.arange(rows))
        labels = torch.arange(rows) // 2
        return LossInput(**given, labels=labels, progress=START)

    def value(self, loss: Loss, inputs: LossInput) -> Value:
        """The loss and its gradient, as in a step of training."""
        given = leaves(inputs)
        found = self.forward(loss, given)
        if found.requires_grad:
            found.backward()  # type: ignore[no-untyped-call]
        loss.zero_grad(set_to_none=True)
        gradients = {place: tensor.grad for place, tensor in tensors(given) if is_float(tensor)}
        return Value(found.detach(), gradients)

    def fresh(self, inputs: LossInput) -> Tensor:
        """What a new loss gives."""
        return self.forward(self.made(), inputs)

    def forward(self, loss: Loss, inputs: LossInput) -> Tensor:
        """The loss under the random numbers of one step. Raises LawBrokenError for what is no
        scalar."""
        with seeded(0, "step"):
            found: Any = loss(inputs)
        if not isinstance(found, Tensor) or found.ndim > 0:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise LawBrokenError(f"forward gave {shape}, which is no scalar tensor")
        return found


def is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def tensors(inputs: LossInput) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of an input, by its place: `views[0]`, `labels`."""
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Tensor):
            yield field.name, value
        elif isinstance(value, tuple):
            yield from ((f"{field.name}[{place}]", tensor) for place, tensor in enumerate(value))


def mapped(inputs: LossInput, change: Any, *parts: str) -> LossInput:
    """The input with `change` applied to each tensor of these parts, or of all."""
    found: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if parts and field.name not in parts:
            continue
        if isinstance(value, Tensor):
            found[field.name] = change(value)
        elif isinstance(value, tuple):
            found[field.name] = tuple(change(tensor) for tensor in value)
    return replace(inputs, **found)


def floats(inputs: LossInput, change: Any, *parts: str) -> LossInput:
    """The input with `change` applied to each floating-point tensor."""
    return mapped(inputs, lambda x: change(x) if is_float(x) else x, *parts)


def leaves(inputs: LossInput) -> LossInput:
    """The same values, with gradients for what comes from networks that are trained; the rest is
    without, as a teacher's is."""
    return floats(
        floats(inputs, lambda x: x.detach().clone()),
        lambda x: x.requires_grad_(),
        "views",
        "online",
    )


@contextmanager
def watching_for_stopped_gradients() -> Iterator[list[str]]:
    """Notes where the gradient is stopped on purpose, by `detach` or `no_grad`."""
    stopped: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            if name in ("detach", "detach_") or (name == "_set_grad_enabled" and args == (False,)):
                stopped.append(name)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield stopped
