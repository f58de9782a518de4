"""Where numbers of two types meet: one is of a fixed type, and of a fixed device as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CONVERSIONS = frozenset({"aten::copy_", "aten::_to_copy"})


@contextmanager
def mixed_types() -> Iterator[list[str]]:
    """Notes operations on tensors of several floating-point types, which torch makes one of without
    a word; single numbers, which have no device of their own, and conversions left out."""
    with _Watch() as watch:
        yield watch.found


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = {
            value.dtype
            for value in tree_leaves((args, kwargs))
            if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
        }
        if {torch.float32, torch.float64} <= met and func._schema.name not in _CONVERSIONS:
            self.found.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs)
