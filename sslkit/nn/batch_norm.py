"""The statistics that BatchNorm layers normalise by in evaluation mode.

Running statistics are an average over the last steps of training, of augmented views, and lag
behind the weights; those of a fresh network are 0 and 1. Here they are computed anew, for the
weights as they are, on images as the network will see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .compute import Compute
from .modes import modes_kept
from .numerics import exact_float32


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether `calibrate_batch_norm` has anything to do: a BatchNorm layer that keeps running
    statistics and that training normalises by those of the batch. A network whose `train` leaves
    layers in evaluation mode has frozen them."""
    with modes_kept(network):
        return bool(_trained_layers(network))


def calibrate_batch_norm(
    network: nn.Module,
    batches: Iterable[Tensor],
    compute: Compute | None = None,
    in_order: Callable[[Iterator[BatchMoments]], Iterable[BatchMoments]] = iter,
) -> None:
    """Gives the BatchNorm layers the statistics of these images, in place; modes are put back to
    what they were, and nothing else is changed. Layers that the network's own `train` leaves in
    evaluation mode are frozen, and stay as they are.

    batches: (B, C, S, S) float images, in random order; none are read where no layer needs them.
    compute: where the network is, and how it computes; None: where it is, in float32.
    A layer's mean and variance are those of all its inputs, over all batches. As in
    training, activations reach the next layer normalised by their own batch, so batches sorted by
    class would bias them. Other layers (dropout) are in evaluation mode meanwhile. What the layers
    held before has no influence. Compare "PreciseBN" (Wu and Johnson 2021, arXiv:2105.07576).

    in_order: makes of the moments of these batches those of all, in their order, where other
    processes have the others; where it gives none, nothing is written."""
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(modes_kept(network))
        layers = _trained_layers(network)
        if not layers:
            return
        network.eval()
        seen: list[LayerMoments] = []
        for number, layer in enumerate(layers):
            layer.train()
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.momentum = 1.0
            hook = partial(_watch, seen, number)
            stack.callback(layer.register_forward_hook(hook).remove)
        assert layers[0].running_mean is not None
        compute = compute or Compute(layers[0].running_mean.device, "fp32", channels_last=False)

        def passed() -> Iterator[BatchMoments]:
            for images in _without_single_images(batches):
                with compute.autocast():
                    network(compute.layout(images))
                yield BatchMoments(tuple(seen), compute.device)
                seen.clear()

        pooled = [_PooledMoments() for _ in layers]
        with kept_batch_statistics(network), exact_float32():
            for found in in_order(passed()):
                for each in found.layers:
                    pooled[each.number].add(each)
        for layer, moments in zip(layers, pooled, strict=True):
            moments.write(layer)


@contextmanager
def kept_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Whatever the block does to the statistics of BatchNorm layers, afterwards they are those of
    before, to the bit and in the same tensors."""
    kept = [buffer.clone() for buffer in _statistics(network)]
    try:
        yield
    finally:
        copy_batch_statistics(network, kept)


def batch_statistics(network: nn.Module) -> list[Tensor]:
    """Copies of the statistics of all BatchNorm layers, on the CPU."""
    return [buffer.cpu() for buffer in _statistics(network)]


@torch.no_grad()
def copy_batch_statistics(network: nn.Module, statistics: Sequence[Tensor]) -> None:
    """Gives a network the `batch_statistics` of another one that is built alike, in place."""
    for buffer, value in zip(_statistics(network), statistics, strict=True):
        buffer.copy_(value)


def _statistics(network: nn.Module) -> list[Tensor]:
    return [
        buffer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm)
        for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        if buffer is not None
    ]


def _trained_layers(network: nn.Module) -> list[_BatchNorm]:
    """The layers with running statistics that training updates; leaves the network in training
    mode."""
    network.train()
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.training
    ]


@dataclass(frozen=True)
class LayerMoments:
    """Mean and variance per channel of what a BatchNorm layer was given in one pass."""

    number: int
    """Which layer, in the order of the network."""
    count: int
    """Values of each channel."""
    mean: Tensor  # (C,)
    squares: Tensor  # (C,) sums of squared deviations from the mean


@dataclass(frozen=True)
class BatchMoments:
    """Those of all layers that a batch passed, in its order."""

    layers: Sequence[LayerMoments]
    device: torch.device

    def to(self, device: torch.device | str) -> BatchMoments:
        """The same on another device."""
        return BatchMoments(
            [
                replace(each, mean=each.mean.to(device), squares=each.squares.to(device))
                for each in self.layers
            ],
            torch.device(device),
        )


def _watch(
    seen: list[LayerMoments],
    number: int,
    layer: _BatchNorm,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """A forward hook. What the layer itself computes: with momentum 1 the moments of a batch are
    its running statistics."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count = inputs[0].numel() // layer.num_features
    mean, squares = _double(layer.running_mean), _double(layer.running_var) * (count - 1)
    seen.append(LayerMoments(number, count, mean, squares))


class _PooledMoments:
    """The moments over all inputs of a layer, merged batch by batch (Chan et al. 1979) in float64
    where the device has it."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, moments: LayerMoments) -> None:
        """Those of further inputs."""
        count, mean, squares = moments.count, moments.mean, moments.squares
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, shift = self.count + count, mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.count = total

    def write(self, layer: _BatchNorm) -> None:
        """Puts the moments into the running statistics; the variance is the unbiased one, as
        torch keeps it."""
        if self.mean is None or self.squares is None:
            return  # the layer took no part in the forward pass
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / max(self.count - 1, 1))


def _double(x: Tensor) -> Tensor:
    """A copy in float64; MPS has none."""
    return x.clone() if x.device.type == "mps" else x.double()


def _without_single_images(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, with a batch of one image joined to the one before: one image has no batch
    statistics."""
    held: Tensor | None = None
    for images in batches:
        if held is not None and len(images) == 1:
            held = torch.cat([held, images])
            continue
        if held is not None:
            yield held
        held = images
    if held is not None:
        yield held
