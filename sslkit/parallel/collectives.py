"""Embeddings of all ranks, with gradients.

The convention of every loss here that takes a `group`: each rank computes the mean over its own
anchors, against the candidates of all ranks. The mean of these losses over the ranks is the loss
that one process would compute on all images. `all_gather` sums the gradients that all ranks send to
an embedding; so a rank's gradient is that of the sum over the ranks, which is W times too large,
and the average over W ranks that DistributedDataParallel takes of parameter gradients gives the
gradient of one process. No further factor is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def all_ranks() -> ProcessGroup | None:
    """The group of all ranks; None where there is but one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def all_gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """The rows of all ranks, in the order of the ranks: (n, ...) to (W n, ...), differentiable.

    The gradient of x is the sum of what all ranks send back, so every rank of the group must call
    this, and run the backward pass, in the same order. All ranks must hold the same shape. On the
    CPU, another one raises ValueError on every rank; on other devices it is not checked, because
    the check would wait for the device.
    """
    if x.device.type == "cpu":
        _check_shapes(x, group)
    gathered: Tensor = _AllGather.apply(x, group)
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group, ctx.length = group, len(x)
        return _gathered(x, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        total = upstream.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.narrow(0, dist.get_rank(ctx.group) * ctx.length, ctx.length), None


def all_reduce(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the ranks, differentiable: the gradient of x is the sum of what all ranks send
    back, as for `all_gather`."""
    total: Tensor = _AllReduce.apply(x, group)
    return total


def gather_detached(x: Tensor, group: ProcessGroup) -> Tensor:
    """(W, *shape) what all ranks hold, in their order, without gradient."""
    return _gathered(x.unsqueeze(0), group)


def reduce_detached(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the ranks, in place, without gradient."""
    dist.all_reduce(x, group=group)
    return x


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        total = upstream.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group)
    return torch.cat(parts)


def _check_shapes(x: Tensor, group: ProcessGroup) -> None:
    own = torch.tensor([[x.ndim, len(x), x.numel()]])
    if not (_gathered(own, group) == own).all():
        found = _gathered(own, group)[:, 1].tolist()
        raise ValueError(
            f"all_gather needs the same shape on every rank, not {found} rows (here: "
            f"{tuple(x.shape)}): give every rank an equal share of the batch"
        )
