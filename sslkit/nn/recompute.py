"""Blocks that are computed twice, so that the activations inside them need not be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """Mixed into a block: in training it keeps its input alone, and is computed again in the
    backward pass, for all images at once, as it was the first time: with the same random numbers,
    buffers and settings. Running statistics are updated by the first pass alone.

    So the gradient is that of the plain block to the bit, batch statistics included.
    Source: Chen et al. 2016, arXiv 1604.06174."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gives."""
        compute = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return compute(*args, **kwargs)
        start = [_State(module) for module in self.modules()]

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _again(start)

        return checkpoint(compute, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def recompute(block: nn.Module) -> None:
    """Makes a block, of whatever class, a recomputed one. It keeps its parameters and its name."""
    if not isinstance(block, Recomputed):
        layer: Any = type(block)
        block.__class__ = _recomputed_class(layer)


def is_recomputed(network: nn.Module) -> bool:
    """Whether any part of a network is recomputed."""
    return any(isinstance(module, Recomputed) for module in network.modules())


class _State:
    """What a pass through a module depends on beside its parameters and inputs: its buffers, such
    as running statistics, and its attributes, such as its mode, but for what they contain."""

    def __init__(self, module: nn.Module, *, copy: bool = True) -> None:
        self.module = module
        self.attributes = {
            name: value
            for name, value in vars(module).items()
            if not isinstance(value, dict | list | set)
        }
        self.buffers = {
            name: value.clone() if copy and value is not None else value
            for name, value in module._buffers.items()
        }

    def restore(self) -> None:
        vars(self.module).update(self.attributes)
        self.module._buffers.update(self.buffers)


@contextmanager
def _again(start: list[_State]) -> Iterator[None]:
    """Inside, modules are as they were before their first pass; what the second changes is lost."""
    now = [_State(state.module, copy=False) for state in start]
    for state in start:
        state.restore()
    try:
        yield
    finally:
        for state in now:
            state.restore()


@cache
def _recomputed_class(block: Any) -> Any:
    return type(f"Recomputed{block.__name__}", (Recomputed, block), {})
