"""Whether a network that should be untrained is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHARE = 0.1
"""Part of the weights that fixed filters and position embeddings may make up."""


def holds_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one architecture, initialised from different seeds, have weights in
    common that no seed gave them: more than a tenth of all elements of parameters, those with one
    value throughout (biases, scales) not counted."""
    others = dict(other.named_parameters())
    total = common = 0
    for name, parameter in one.named_parameters():
        if _is_constant(parameter):
            continue
        total += parameter.numel()
        match = others.get(name)
        if match is not None and torch.equal(parameter, match):
            common += parameter.numel()
    return common > _SHARE * total


def _is_constant(parameter: Tensor) -> bool:
    values = parameter.detach().flatten()
    return bool((values == values[:1]).all())
