"""Faults of torch itself that a run must not train on, found by asking the torch that is installed.

A convolution in half precision on a CPU leaves part of its weight gradient unset where a position
of the kernel only ever meets padding, as the outer ones of a 3x3 kernel with stride 2 do on a map
of 1x1. That part then holds whatever the memory held before: NaN now and then, and other bits in
every run."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_TRIES = 20
"""Without `_filled_memory` it is up to the allocator what the memory that is left unset held."""
_CHANNELS = 64
"""Channels of the convolution that is tried: small gradients lie in memory that was used before."""
_M_PERTURB = -6
"""glibc's `mallopt`: what is allocated is filled with the complement of a byte."""
_FILLING = 0x80
"""Leaves 0x7f7f, 3e38 in bf16 and a NaN in fp16."""
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Convolution:
    """A convolution and the map that it works on."""

    name: str
    """The name of the module."""
    map_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    channels: tuple[int, int, int]
    """In, out, groups."""

    def __str__(self) -> str:
        kernel, stride, size = (
            "x".join(map(str, value)) for value in (self.kernel, self.stride, self.map_size)
        )
        return f"{self.name} ({kernel}, stride {stride}, on a map of {size})"

    @property
    def meets_padding_only(self) -> bool:
        """Whether a position of the kernel never meets the map."""
        return any(
            _uncovered(*side)
            for side in zip(
                self.map_size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )


@contextmanager
def recorded_convolutions(network: nn.Module, found: set[Convolution]) -> Iterator[None]:
    """Adds to `found` every convolution that runs inside the block."""

    def on(name: str) -> Any:
        def hook(module: _ConvNd, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                found.add(_describe(name, module, inputs[0]))

        return hook

    handles = [
        module.register_forward_hook(on(name))
        for name, module in network.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_faulty(convolutions: set[Convolution], precision: str) -> list[Convolution]:
    """Those whose weight gradient this torch leaves unset on a CPU in `precision`."""
    if precision not in _HALF:
        return []
    suspects = sorted((c for c in convolutions if c.meets_padding_only), key=lambda c: c.name)
    return [
        c
        for c in suspects
        if leaves_gradient_unset(
            c.map_size, c.kernel, c.stride, c.padding, c.dilation, c.channels, _HALF[precision]
        )
    ]


@cache
def leaves_gradient_unset(
    map_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    channels: tuple[int, int, int],
    dtype: torch.dtype,
) -> bool:
    """Tries such a convolution, with fewer channels, in memory that is filled; for where that
    cannot be had, after one with the same weights on a map that meets all of them, which leaves
    infinities in the memory that torch uses."""
    groups = min(channels[2], _CHANNELS)
    inside, outside = (
        groups * max(1, min(count // channels[2], _CHANNELS // groups)) for count in channels[:2]
    )
    apply = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(kernel) - 1]
    weight = torch.ones(outside, inside // groups, *kernel, dtype=dtype)
    reach = [size + 2 * step for size, step in zip(map_size, stride, strict=True)]
    met_by_all = [size + 2 * edge for size, edge in zip(reach, padding, strict=True)]

    def weight_gradient(size: Sequence[int], value: float) -> tuple[Tensor | None, int]:
        leaf = weight.clone().requires_grad_()
        images = torch.full((4, inside, *size), value, dtype=dtype)
        output = apply(images, leaf, None, stride, padding, dilation, groups)
        output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]
        return leaf.grad, output[:, 0].numel()

    with _filled_memory():
        for _ in range(_TRIES):
            try:
                weight_gradient(met_by_all, torch.inf)
                made, positions = weight_gradient(map_size, 1.0)
            except RuntimeError:  # no such convolution: the module pads by itself
                return False
            # Each entry is a count of ones: at most the images times the positions of the output.
            if made is None or not bool((made.float().abs() <= 2 * positions).all()):
                return True
    return False


@contextmanager
def _filled_memory() -> Iterator[None]:
    """Memory that is allocated inside the block holds large numbers, where the C library is glibc;
    elsewhere what it held before."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        yield
        return
    set_option(_M_PERTURB, _FILLING)
    try:
        yield
    finally:
        set_option(_M_PERTURB, 0)


def _describe(name: str, module: _ConvNd, images: Tensor) -> Convolution:
    sides = len(module.kernel_size)
    padding = module.padding if not isinstance(module.padding, str) else (0,) * sides
    if module.padding_mode != "zeros":
        padding = (0,) * sides  # the module pads by itself
    size = tuple(images.shape[-sides:])
    channels = (module.in_channels, module.out_channels, module.groups)
    return Convolution(
        name,
        size,
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(padding),
        tuple(module.dilation),
        channels,
    )


def _uncovered(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return any(
        not any(0 <= o * stride - padding + tap * dilation < size for o in range(outputs))
        for tap in range(kernel)
    )
