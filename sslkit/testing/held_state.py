"""Everything that a tree of modules holds: parameters, buffers, and attributes with values."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.api import RunFacts

_OF_TORCH = frozenset(vars(nn.Module()))
_DEEPEST = 5
_SETTLED = (type, ModuleType, BaseModel, RunFacts)
"""What holds nothing that changes."""


def held(module: nn.Module) -> dict[str, Any]:
    """Name -> value of what a module and those inside it hold, copied; without BatchNorm, whose
    statistics may change at any time, and gradients. Looked through are attributes, and what these
    hold: collections, objects, generators of random numbers, variables of closures."""
    found: dict[str, Any] = {}
    seen = {id(inner) for inner in module.modules()}
    for path, inner in module.named_modules():
        at = f"{path}." if path else ""
        for name, value in _parts(inner):
            found.update(_values(f"{at}{name}", value, 0, seen))
    return found


def _values(name: str, value: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The tensors, arrays, numbers and texts in an attribute, however they are nested. seen: what
    was looked through already."""
    if isinstance(value, Tensor):
        yield name, value.detach().clone()
    elif isinstance(value, np.ndarray):
        yield name, value.copy()
    elif isinstance(value, (bool, int, float, str, bytes, type(None))):
        yield name, value
    elif depth < _DEEPEST and id(value) not in seen and not isinstance(value, _SETTLED):
        seen.add(id(value))
        for key, item in _inside(name, value):
            yield from _values(key, item, depth + 1, seen)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, each with a name."""
    if isinstance(value, Mapping):
        yield f"len({name})", len(value)
        yield from ((f"{name}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, deque)):
        yield f"len({name})", len(value)
        yield from ((f"{name}[{place}]", item) for place, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield f"{name}", repr(sorted(map(repr, value)))
    elif isinstance(value, torch.Generator):
        yield f"{name}", value.get_state()
    elif isinstance(value, random.Random):
        yield f"{name}", repr(value.getstate())
    elif isinstance(value, np.random.Generator):
        yield f"{name}", repr(value.bit_generator.state)
    elif isinstance(value, FunctionType):
        names = value.__code__.co_freevars
        for free, cell in zip(names, value.__closure__ or (), strict=True):
            with suppress(ValueError):  # a variable that has no value yet
                yield f"{name}: {free}", cell.cell_contents
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{key}", item) for key, item in _parts(value))
    elif hasattr(value, "__dict__"):
        yield from ((f"{name}.{key}", item) for key, item in vars(value).items())


def _parts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers, attributes and modules."""
    if not isinstance(module, _BatchNorm):
        yield from ((key, item) for key, item in vars(module).items() if key not in _OF_TORCH)
        for group in (module._parameters, module._buffers, module._modules):
            yield from group.items()


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
