"""Work on some samples of a batch, without reading back from a device which they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK_VALUES = 2**18
"""Values that `select_rows` works on at a time on a CPU: they, and what is made of them on the way,
stay in the cache, which measured up to twice as fast as whole batches."""


def branch(
    condition: Tensor, if_true: Callable[[], Tensor], if_false: Callable[[], Tensor]
) -> Tensor:
    """Inside a compiled function on a CPU: runs one of two functions, chosen when the compiled
    function runs. condition: one bool. Both results have one shape and share no memory with their
    inputs."""
    result: Tensor = torch.cond(condition, if_true, if_false, ())
    return result


def select_rows(
    mask: Tensor, images: Tensor, operation: Callable[..., Tensor], *params: Tensor
) -> Tensor:
    """Applies `operation(images, *params)` to the samples where mask (B,) holds; the others keep
    their bits.

    In eager mode on a CPU only those samples are worked on. Elsewhere all are, because reading the
    mask back would stall the device; compiled for a CPU, unless no sample of the batch is chosen.
    """

    def everywhere() -> Tensor:
        return torch.where(mask.view(-1, 1, 1, 1), operation(images, *params), images)

    if images.device.type != "cpu":
        return everywhere()
    if torch.compiler.is_compiling():
        return branch(mask.any(), everywhere, lambda: images.clone())
    rows = mask.nonzero().squeeze(1)
    if not len(rows):
        return images
    result = images.clone()
    for block in torch.split(rows, max(1, _BLOCK_VALUES // images[0].numel())):
        chosen = operation(images.index_select(0, block), *(param[block] for param in params))
        result.index_copy_(0, block, chosen)
    return result
