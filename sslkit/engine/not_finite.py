"""Finding what is not finite: the first value of a tensor, a tensor in the state of a run, the
place in a method where it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.parallel.sharding import local_part

from .optimization import Optimization


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a nested structure of lists, tuples, mappings and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


def odd_value(tensor: Tensor) -> float | None:
    """A value of the tensor that is not finite (a NaN before an infinity); None where all are. Of
    one that lies in parts, those that are here are looked at."""
    tensor = local_part(tensor)
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return None
    with torch.no_grad():
        if bool(torch.isfinite(tensor).all()):
            return None
        if tensor.is_complex() or bool(torch.isnan(tensor).any()):
            return float("nan")
        return float(tensor[torch.isinf(tensor)][0])


def first_odd(named: Iterator[tuple[str, Tensor]]) -> tuple[str, float] | None:
    """The first tensor that is not finite, and what stands in it."""
    for name, tensor in named:
        if (value := odd_value(tensor.detach())) is not None:
            return name, value
    return None


# --- In the state of a run -----------------------------------------------------------------------


class StateCheck:
    """Finds what is not finite in the state of a run.

    A buffer that holds infinities, and no NaN, before the first step is meant to (a mask, a "best
    so far"); it is then only asked for NaN."""

    def __init__(self, method: nn.Module, optimization: Optimization) -> None:
        self._method = method
        self._optimization = optimization
        self._infinite = {
            name
            for name, buffer in method.named_buffers()
            if buffer.is_floating_point() and bool(torch.isinf(buffer).any())
        }

    def find(self) -> tuple[str, str, float] | None:
        """(what it is, its name, the value) of the first tensor that is not finite: weights, then
        buffers, then the state of the optimiser. Waits for the device once if there is none."""
        if bool(_all_finite(tensor for _, _, tensor in self._tensors())):
            return None
        for kind, name, tensor in self._tensors():
            if odd := first_odd(iter([(name, tensor)])):
                return kind, name, odd[1]
        return None

    def _tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        for kind, name, value in state_tensors(self._method, self._optimization.optimizer):
            value = local_part(value)
            if kind == "buffer" and name in self._infinite:
                value = torch.where(torch.isinf(value), 0.0, value)
            yield kind, name, value


def state_tensors(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, str, Tensor]]:
    """(what it is, its name, the tensor itself, detached): weights, buffers, then the state of the
    optimiser."""
    for name, parameter in network.named_parameters():
        yield "weights", name, parameter.detach()
    for name, buffer in network.named_buffers():
        yield "buffer", name, buffer.detach()
    names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
    for owner, entry in optimizer.state.items():
        for key, moment in _named(entry):
            yield "state of the optimiser", f"{key} of {names.get(owner, '?')}", moment


def _named(entry: Any) -> Iterator[tuple[str, Tensor]]:
    items = entry.items() if isinstance(entry, dict) else ()
    for key, value in items:
        for tensor in tensors_in(value):
            yield str(key), tensor.detach()


def _all_finite(tensors: Iterator[Tensor]) -> Tensor:
    """A scalar on the device: whether all values are finite. The largest magnitude of a tensor is
    NaN or infinite where one of its values is, and takes no memory to find."""
    verdicts = [
        torch.isfinite(torch.linalg.vector_norm(_wide(tensor), torch.inf))
        for tensor in tensors
        if tensor.is_floating_point() and tensor.numel()
    ]
    if not verdicts:
        return torch.tensor(True)
    device = next((verdict.device for verdict in verdicts if not verdict.is_cpu), None)
    return torch.stack([verdict.to(device) for verdict in verdicts]).all()


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a number format that reductions know on every device."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


# --- In a step -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A module whose input, output or gradient is the first that is not finite."""

    name: str
    """The module in the method, such as `backbone.model.conv1`; empty: the method itself."""
    module: nn.Module
    what: str
    """"the output of", "the gradient at the input of" and the like."""
    value: float
    """What stands there: NaN, or an infinity."""
    moment: int
    """Which input, output or gradient of the step it was, counted as they came."""

    def __str__(self) -> str:
        name = self.name or "the method"
        return f"{self.what} {name} ({type(self.module).__name__}) is {self.value}"


class Trace:
    """The first places of one forward and one backward pass, which are watched module by module. It
    reads every activation, so it serves one step, not a run."""

    def __init__(self) -> None:
        self.forward: Place | None = None
        self.backward: Place | None = None
        self._odd_gradient: Tensor | None = None
        self._seen = 0

    @contextmanager
    def watching(self, method: nn.Module) -> Iterator[None]:
        """Watches the modules of a method, teachers included, while the block runs."""
        handles = []
        for name, module in method.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(self._on_input(name)))
            handles.append(module.register_forward_hook(self._on_output(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._note_forward(name, module, "the input of", inputs)
            self._watch_gradient(name, module, "the gradient at the input of", inputs)

        return hook

    def _on_output(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._note_forward(name, module, "the output of", output)
            self._watch_gradient(name, module, "the gradient at the output of", output)

        return hook

    def _watch_gradient(self, name: str, module: nn.Module, what: str, found: Any) -> None:
        for tensor in tensors_in(found):
            if tensor.requires_grad:
                tensor.register_hook(  # type: ignore[no-untyped-call]
                    self._on_gradient(name, module, what)
                )

    def _on_gradient(self, name: str, module: nn.Module, what: str) -> Any:
        def hook(gradient: Tensor) -> None:
            self._seen += 1
            # One tensor is the output of a module and, told later, the input of the next one: it is
            # that one whose backward pass made its gradient.
            if self.backward is not None and gradient is not self._odd_gradient:
                return
            if (value := odd_value(gradient)) is not None:
                self.backward = Place(name, module, what, value, self._seen)
                self._odd_gradient = gradient

        return hook

    def _note_forward(self, name: str, module: nn.Module, what: str, found: Any) -> None:
        self._seen += 1
        if self.forward is not None:
            return
        for tensor in tensors_in(found):
            if (value := odd_value(tensor)) is not None:
                self.forward = Place(name, module, what, value, self._seen)
                return
