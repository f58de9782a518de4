"""Networks that a file describes may be no larger than the weights beside it: who sends a file of a
few bytes must not make its reader build a network of billions of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module

_TIMES, _MORE = 4, 1 << 24
"""Values beyond those of the file: layers that are replaced as a network is built, parts that its
weights leave out, and tables that are computed."""


@contextmanager
def no_larger_than(weights: Iterable[Any]) -> Iterator[None]:
    """A block in which modules are built for these weights; what is no tensor among them has none.
    Raises ValueError as soon as they have far more values, before those are filled."""
    given = sum(value.numel() for value in weights if isinstance(value, Tensor))
    left = _TIMES * given + _MORE

    def count(owner: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal left
        left -= 0 if value is None or nn.parameter.is_lazy(value) else value.numel()
        if left < 0:
            raise ValueError(
                f"the network that it describes has far more than its {given:,} weights"
            )

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
