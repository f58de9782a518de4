"""BatchNorm whose training statistics are over other rows than those that a layer is given: over
the images of all ranks that pass together, or over groups of these.

A layer stays what it is, under its name, and is only made able to do so (`shareable_layers`); it
does so inside `over_ranks` and `in_groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.parallel.collectives import gather_detached, reduce_detached

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""(n, ...) images to tensors (n, ...)."""


@dataclass(frozen=True)
class RowGroups:
    """Groups, with batch statistics of their own, of the images that pass the networks together."""

    order: Tensor
    """(M,) int64: the images that pass together, on all ranks, in an order in which the groups are
    consecutive."""
    count: int
    """How many groups there are; their sizes differ by at most one."""
    first: int = 0
    """Where the rows of this rank begin among the M."""
    rows: int | None = None
    """How many of them are this rank's; None: all."""

    @cached_property
    def sizes(self) -> list[int]:
        """Images in each group."""
        size, larger = divmod(len(self.order), self.count)
        return [size + (group < larger) for group in range(self.count)]

    @cached_property
    def own(self) -> Tensor:
        """(n,) int64: the group of each row of this rank."""
        numbers = torch.arange(self.count, device=self.order.device)
        sizes = torch.tensor(self.sizes, device=self.order.device)
        of_row = torch.empty_like(self.order)
        of_row[self.order] = numbers.repeat_interleave(sizes, output_size=len(self.order))
        return of_row if self.rows is None else of_row[self.first : self.first + self.rows]

    @property
    def is_here(self) -> bool:
        """Whether all images are on this rank."""
        return self.rows is None or self.rows == len(self.order)

    def passed_through(self, network: Network, images: Tensor) -> tuple[Tensor, ...]:
        """What `network` makes of the images of this rank, in their order. Where all are here they
        pass in the order of the groups, which costs a layer nothing but a cut."""
        if not self.is_here:
            return network(images)
        back = self.order.argsort()
        # Indexing keeps channels_last, which index_select drops.
        return tuple(output.index_select(0, back) for output in network(images[self.order]))


class SharedStatistics(nn.Module):
    """Mixed into a BatchNorm layer by `shareable_layers`."""

    group_sizes: tuple[int, ...] = ()
    """Sizes of consecutive groups of rows, where there are several and all are here. Numbers, and
    not `groups`: a compiled network is compiled anew for another object."""
    groups: RowGroups | None = None
    """The groups, where some of their rows are on other ranks."""
    ranks: ProcessGroup | None = None
    """The ranks whose images pass together; None: this one alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, C, ...) to the same shape."""
        normalize = super().forward
        if self.training and self.ranks is not None:
            return _normalize_over_ranks(self, inputs, self.ranks, self.groups)
        if self.training and self.group_sizes:
            parts = torch.split(inputs, list(self.group_sizes))
            return torch.cat([normalize(part) for part in parts])
        whole: Tensor = normalize(inputs)
        return whole


def shareable_layers(network: nn.Module) -> list[SharedStatistics]:
    """Makes the BatchNorm layers of a network, of whatever class, able to share statistics, and
    returns them."""
    layers: list[SharedStatistics] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, SharedStatistics):
            layer: Any = type(module)
            module.__class__ = _shareable_class(layer)
        if isinstance(module, SharedStatistics):
            layers.append(module)
    return layers


@contextmanager
def over_ranks(layers: Sequence[SharedStatistics], ranks: ProcessGroup | None) -> Iterator[None]:
    """Inside, these layers normalise by the statistics of the images of all ranks, which pass them
    together."""
    for layer in layers if ranks is not None else ():
        layer.ranks = ranks
    try:
        yield
    finally:
        for layer in layers if ranks is not None else ():
            layer.ranks = None


@contextmanager
def in_groups(layers: Sequence[SharedStatistics], groups: RowGroups) -> Iterator[None]:
    """Inside, each group of rows is normalised by its own statistics.

    Running statistics are updated once a group, with a momentum such that a batch forgets as much
    as one update does otherwise."""
    several = groups.count > 1
    momenta = [layer.momentum for layer in layers]
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.group_sizes = tuple(groups.sizes) if several and groups.is_here else ()
        layer.groups = groups if several and not groups.is_here else None
        if isinstance(momentum, float):
            layer.momentum = 1.0 - (1.0 - momentum) ** (1.0 / groups.count)
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.group_sizes, layer.groups = (), None
            layer.momentum = momentum


@cache
def _shareable_class(layer: Any) -> Any:
    return type(f"Shared{layer.__name__}", (SharedStatistics, layer), {})


def _normalize_over_ranks(
    layer: Any, inputs: Tensor, ranks: ProcessGroup, groups: RowGroups | None
) -> Tensor:
    layer._check_input_dim(inputs)
    owner = None if groups is None else groups.own
    count = 1 if groups is None else groups.count
    output, mean, variance, rows = _OverRanks.apply(
        inputs, layer.weight, layer.bias, layer.eps, ranks, owner, count
    )
    _update_running(layer, mean, variance, rows)
    normalised: Tensor = output
    return normalised


@torch.no_grad()
def _update_running(layer: Any, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
    """As torch does it, one group after the other. mean, variance: (G, C), biased; rows: (G,)."""
    if not layer.track_running_stats or layer.running_mean is None:
        return
    unbiased = variance * (rows / (rows - 1).clamp_min(1)).unsqueeze(1)
    for group in range(len(mean)):
        layer.num_batches_tracked.add_(1)
        share = layer.momentum
        if share is None:
            share = 1.0 / float(layer.num_batches_tracked)
        for running, now in ((layer.running_mean, mean), (layer.running_var, unbiased)):
            running.mul_(1.0 - share).add_(now[group].to(running.dtype), alpha=share)


class _OverRanks(torch.autograd.Function):
    """Normalisation by statistics of all ranks: one message forward, one backward.

    Shapes: n rows, C channels, P positions, G groups. Variances of ranks are merged around their
    means (Chan et al. 1979), as those of one process would be."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        ranks: ProcessGroup,
        owner: Tensor | None,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = inputs if inputs.dtype == torch.float64 else inputs.float()
        mean, squares, rows = _own_moments(x, owner, count)
        everyone = gather_detached(torch.stack([mean, squares, rows.expand_as(mean)]), ranks)
        means, sums, counts = everyone.unbind(1)  # each (W, G, C)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        squares = (sums + counts * (means - mean).square()).sum(0)
        variance = squares / total
        inverse = torch.rsqrt(variance + eps)

        shape = (-1, x.shape[1], *[1] * (x.ndim - 2))
        normalised = (x - _of_rows(mean, owner, shape)) * _of_rows(inverse, owner, shape)
        ctx.save_for_backward(normalised, inverse, total, weight, owner)
        ctx.ranks, ctx.count, ctx.dtype, ctx.has_bias = ranks, count, inputs.dtype, bias is not None
        output = normalised
        if weight is not None:
            output = output * weight.to(x.dtype).view(1, *shape[1:])
        if bias is not None:
            output = output + bias.to(x.dtype).view(1, *shape[1:])
        ctx.mark_non_differentiable(mean, variance, total)
        return output.to(inputs.dtype), mean, variance, total[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        normalised, inverse, total, weight, owner = ctx.saved_tensors
        dy = upstream.to(normalised.dtype)
        shape = (-1, dy.shape[1], *[1] * (dy.ndim - 2))
        own = torch.stack(
            [_sums(dy, owner, ctx.count), _sums(dy * normalised, owner, ctx.count)]
        )  # (2, G, C)
        to_bias, to_weight = own.sum(1)
        everyone = reduce_detached(own, ctx.ranks) / total
        about_mean, about_size = (_of_rows(part, owner, shape) for part in everyone)
        dx = (dy - about_mean - normalised * about_size) * _of_rows(inverse, owner, shape)
        if weight is not None:
            dx = dx * weight.to(dx.dtype).view(1, *shape[1:])
        return (
            dx.to(ctx.dtype),
            None if weight is None else to_weight.to(weight.dtype),
            to_bias if ctx.has_bias else None,
            *[None] * 4,
        )


def _own_moments(x: Tensor, owner: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (G, C), sum of squared deviations from it (G, C) and number of values (G, 1)."""
    positions = x[0, 0].numel()
    if owner is None:
        rows = x.new_full((1, 1), len(x) * positions)
    else:
        rows = torch.bincount(owner, minlength=count).to(x.dtype).unsqueeze(1) * positions
    mean = _sums(x, owner, count) / rows.clamp_min(1)
    shape = (-1, x.shape[1], *[1] * (x.ndim - 2))
    return mean, _sums((x - _of_rows(mean, owner, shape)).square(), owner, count), rows


def _sums(x: Tensor, owner: Tensor | None, count: int) -> Tensor:
    """(G, C) sums over the rows of each group and all positions."""
    if owner is None:
        return x.sum(dim=[0, *range(2, x.ndim)]).unsqueeze(0)
    by_row = x.sum(dim=[*range(2, x.ndim)]) if x.ndim > 2 else x
    return x.new_zeros(count, x.shape[1]).index_add_(0, owner, by_row)


def _of_rows(values: Tensor, owner: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """What each row is given of the values (G, C) of its group, ready for broadcasting."""
    return (values if owner is None else values[owner]).view(shape)
