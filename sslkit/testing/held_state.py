"""Everything that a tree of modules holds: parameters, buffers, and attributes with values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_OF_TORCH = frozenset(vars(nn.Module()))
_DEEPEST = 4


def held(module: nn.Module) -> dict[str, Any]:
    """Name -> value of what a module and those inside it hold, copied; without BatchNorm, whose
    statistics may change at any time, and gradients."""
    found: dict[str, Any] = {}
    for path, inner in module.named_modules():
        if isinstance(inner, _BatchNorm):
            continue
        at = f"{path}." if path else ""
        for name, value in (*inner._parameters.items(), *inner._buffers.items()):
            if value is not None:
                found[f"{at}{name}"] = value.detach().clone()
        for name, value in vars(inner).items():
            if name not in _OF_TORCH:
                found.update((f"{at}{key}", each) for key, each in _values(name, value, 0))
    return found


def _values(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The tensors, arrays, numbers and texts in an attribute, however they are nested."""
    if isinstance(value, Tensor):
        yield name, value.detach().clone()
    elif isinstance(value, np.ndarray):
        yield name, value.copy()
    elif isinstance(value, (bool, int, float, str, bytes, type(None))):
        yield name, value
    elif depth < _DEEPEST and isinstance(value, Mapping):
        yield f"len({name})", len(value)
        for key, item in value.items():
            yield from _values(f"{name}[{key!r}]", item, depth + 1)
    elif depth < _DEEPEST and isinstance(value, (list, tuple)):
        yield f"len({name})", len(value)
        for place, item in enumerate(value):
            yield from _values(f"{name}[{place}]", item, depth + 1)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what differs in any bit, came or went."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        name
        for name in names
        if name not in before or name not in after or not _same(before[name], after[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.shape == other.shape
            and one.dtype == other.dtype
            and bool(((one == other) | ((one != one) & (other != other))).all())
        )
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


def size_of(values: Mapping[str, Any]) -> int:
    """Numbers, texts and elements of tensors that are held."""
    return sum(
        value.numel() if isinstance(value, Tensor) else int(getattr(value, "size", 1))
        for value in values.values()
    )
