"""Groups of images that share BatchNorm statistics: MoCo's shuffled and split BatchNorm.

With statistics over the whole batch a network can tell a key of this batch from the keys of the
queue by traces of the batch that both carry, and solves the task without looking at the image
(He et al. 2020, arXiv 1911.05722, section 3.3). So queries and keys are normalised in small groups,
and a query's group holds other images than its key's. The paper's groups are the devices of a
cluster; here they are drawn by image, and only the BatchNorm layers see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.randomness import SampleRandom


def random_order(random: SampleRandom) -> Tensor:
    """(B,) int64: the rows of the batch in a random order of their images, which depends on the
    images and on nothing else, neither on their order in the batch nor on who holds them."""
    words = random.bits("group", 2)
    # 63 bits: ties, which a stable sort would break by position, do not happen in practice.
    return ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)


def group_sizes(rows: int, count: int) -> list[int]:
    """The sizes of `count` consecutive groups of rows, which differ by at most one."""
    size, larger = divmod(rows, count)
    return [size + (group < larger) for group in range(count)]


class SplitStatistics(nn.Module):
    """Mixed into a BatchNorm layer: in training mode each of `num_groups` consecutive groups of
    rows has batch statistics of its own."""

    num_groups = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        normalize = super().forward
        if self.num_groups == 1 or not self.training:
            whole: Tensor = normalize(inputs)
            return whole
        parts = torch.split(inputs, group_sizes(len(inputs), self.num_groups))
        return torch.cat([normalize(part) for part in parts])


def splittable_layers(network: nn.Module) -> list[SplitStatistics]:
    """Makes the BatchNorm layers of a network, of whatever class, able to work in groups, and
    returns them. They stay what they are, under their names, until `in_groups` says otherwise."""
    layers: list[SplitStatistics] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, SplitStatistics):
            layer: Any = type(module)
            module.__class__ = _split_class(layer)
        if isinstance(module, SplitStatistics):
            layers.append(module)
    return layers


@contextmanager
def in_groups(layers: Sequence[SplitStatistics], count: int) -> Iterator[None]:
    """Inside, these layers normalise `count` groups of rows each by their own statistics.

    Running statistics are updated once a group, with a momentum such that a batch forgets as much
    as one update does otherwise."""
    momenta = [layer.momentum for layer in layers]
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.num_groups = count
        if isinstance(momentum, float):
            layer.momentum = 1.0 - (1.0 - momentum) ** (1.0 / count)
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.num_groups = 1
            layer.momentum = momentum


@cache
def _split_class(layer: Any) -> Any:
    return type(f"Split{layer.__name__}", (SplitStatistics, layer), {})
