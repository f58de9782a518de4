"""Training and evaluation mode of networks, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
