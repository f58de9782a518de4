"""Training and evaluation mode of networks, put back as they were; dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_RATES = ("p", "drop_prob", "prob")
"""What the probability of such a layer is called in torch and torchvision, timm's paths, and its
patches."""


def switch_off_dropout(network: nn.Module) -> None:
    """Layers that drop at random in training (dropout, stochastic depth, patches, attention) drop
    nothing from now on, whatever the mode: torch's, timm's and torchvision's. Nor do networks that
    drop features themselves, as ResNets and EfficientNets of timm do, by their `drop_rate`."""
    for module in network.modules():
        if isinstance(getattr(module, "drop_rate", None), int | float):
            module.drop_rate = 0.0  # type: ignore[assignment]
        name = type(module).__name__.lower()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, _DropoutNd) or "drop" in name or name == "stochasticdepth":
            for rate in _RATES:
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards every module has the training flag of before, whatever `train` does to it, also
    where an exception leaves the block."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, for the time of the block."""
    with modes_kept(network):
        network.eval()
        yield


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """`eval_mode` without gradients: nothing inside changes the network."""
    with eval_mode(network), torch.no_grad():
        yield
