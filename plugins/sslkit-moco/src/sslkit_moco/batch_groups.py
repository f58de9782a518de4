"""Groups of images that share BatchNorm statistics: MoCo's shuffled and split BatchNorm.

With statistics over the whole batch a network can tell a key of this batch from the keys of the
queue by traces of the batch that both carry, and solves the task without looking at the image
(He et al. 2020, arXiv 1911.05722, section 3.3). So queries and keys are normalised in small groups,
and a query's group holds other images than its key's. The paper's groups are the devices of a
cluster; here they are drawn by image, and every group is a forward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.randomness import SampleRandom

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""(n, C, S, S) images to tensors (n, ...)."""


def random_groups(random: SampleRandom, count: int) -> list[Tensor]:
    """The rows of the batch in `count` groups whose sizes differ by at most one, each (n,) int64.

    Drawn by image: which images share a group depends on the images and on nothing else, neither
    on their order in the batch nor on who holds them.
    """
    words = random.bits("group", 2)
    # 63 bits: ties, which a stable sort would break by position, do not happen in practice.
    order = ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)
    return list(order.tensor_split(count))


def in_groups(network: Network, images: Tensor, groups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of `network` on each group of rows, put back into the order of `images`."""
    parts = [network(images[rows]) for rows in groups]  # index_select would drop channels_last
    back = torch.cat(list(groups)).argsort()
    return tuple(torch.cat(part).index_select(0, back) for part in zip(*parts, strict=True))


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a network computes batch statistics."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def slow_running_statistics(module: nn.Module, count: int) -> None:
    """Lets `count` updates of the running statistics forget as much as one did before, so that a
    step in groups weighs as much as a step of the whole batch. Changes the network in place."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.momentum is not None:
            part.momentum = 1.0 - (1.0 - part.momentum) ** (1.0 / count)
