"""BatchNorm whose training statistics are over other rows than those that a layer is given: over
the images of all ranks that pass together, or over groups of these.

A layer stays what it is, under its name, and is only made able to do so (`shareable_layers`); it
does so inside `over_ranks` and `in_groups`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

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
        normalize: Callable[[Tensor], Tensor] = super().forward
        if isinstance(self, nn.SyncBatchNorm):  # its own way works on GPUs alone, and not in groups
            normalize = partial(_BatchNorm.forward, self)
        if not self._takes_statistics:
            return normalize(inputs)
        if self.ranks is not None:
            with _Intercepted(self) as found:
                output = normalize(inputs)
            found.check()
            return output
        if self.group_sizes:
            parts = torch.split(inputs, list(self.group_sizes))
            return torch.cat([normalize(part) for part in parts])
        return normalize(inputs)

    @property
    def _takes_statistics(self) -> bool:
        """Whether the layer normalises by statistics of what it is given, which one without running
        statistics always does."""
        return self.training or getattr(self, "running_mean", None) is None


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


_BATCH_NORM = inspect.signature(F.batch_norm)


class _Intercepted(TorchFunctionMode):
    """Inside, `F.batch_norm` is over the rows of all ranks: the one step of a layer that differs,
    whatever else its class does, such as an activation that follows."""

    def __init__(self, layer: SharedStatistics) -> None:
        super().__init__()
        self._layer = layer
        self._met = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        self._met = True
        given = _BATCH_NORM.bind(*args, **(kwargs or {}))
        given.apply_defaults()
        return _batch_norm_over_ranks(self._layer, given.arguments)

    def check(self) -> None:
        """Raises TypeError where the layer took statistics in a way of its own."""
        if not self._met:
            raise TypeError(
                f"{type(self._layer).__name__} takes batch statistics without "
                "torch.nn.functional.batch_norm, so they would be those of one process alone; call "
                "that function, or train with one process"
            )


def _batch_norm_over_ranks(layer: Any, given: Mapping[str, Any]) -> Tensor:
    """`F.batch_norm` over the rows of all ranks or the groups of these. given: its arguments."""
    inputs = given["input"]
    if not given["training"]:
        return F.batch_norm(**given)
    groups: RowGroups | None = layer.groups
    smallest = len(inputs) * layer.ranks.size() if groups is None else min(groups.sizes)
    if 0 < smallest * inputs.shape[2:].numel() < 2:
        raise ValueError("expected more than 1 value per channel when training, as torch does")
    owner, count = (None, 1) if groups is None else (groups.own, groups.count)
    output, mean, variance, rows = _OverRanks.apply(
        inputs, given["weight"], given["bias"], given["eps"], layer.ranks, owner, count
    )
    if given["running_mean"] is not None:
        running = given["running_mean"], given["running_var"]
        _update_running(layer, running, given["momentum"], (mean, variance, rows))
    normalised: Tensor = output
    return normalised


@torch.no_grad()
def _update_running(
    layer: Any,
    running: tuple[Tensor, Tensor],
    momentum: float,
    statistics: tuple[Tensor, Tensor, Tensor],
) -> None:
    """As torch does it, one group after the other; the layer has counted the first already.
    statistics: mean and biased variance, (G, C) both, of so many rows, (G,)."""
    mean, variance, rows = statistics
    unbiased = variance * (rows / (rows - 1)).unsqueeze(1)
    for group in range(len(mean)):
        if group and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            if layer.momentum is None:
                momentum = 1.0 / float(layer.num_batches_tracked)
        for kept, now in zip(running, (mean, unbiased), strict=True):
            kept.mul_(1.0 - momentum).add_(now[group].to(kept.dtype), alpha=momentum)


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
        # Around the first mean: those of values far from zero are close to each other.
        mean = means[0] + ((means - means[0]) * counts).sum(0) / total
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
    positions = x.shape[2:].numel()
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
