"""Keeps an evaluator from changing anything outside itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sslkit.nn.numerics import exact_float32
from sslkit.randomness import seeded

from .features import encoder_state


@contextmanager
def isolated(seed: int, key: str) -> Iterator[None]:
    """An evaluator draws from its own seed, the same for every subject, leaves the generators of
    the training run alone, and computes float32 in float32."""
    with exact_float32(), seeded(seed, "evaluation", key), torch.enable_grad():
        yield


@contextmanager
def unchanged(encoder: nn.Module) -> Iterator[None]:
    """Raises RuntimeError if the block changed a bit of the encoder, and puts it back. Gradients
    and `requires_grad` flags that it leaves behind are put back silently."""
    before = {name: tensor.clone() for name, tensor in encoder_state(encoder).items()}
    trainable = [(p, p.requires_grad, p.grad) for p in encoder.parameters()]
    try:
        yield
    finally:
        now = encoder_state(encoder)
        changed = [name for name, kept in before.items() if not _same_bits(kept, now.get(name))]
        with torch.no_grad():
            for name in changed:
                if name in now and now[name].shape == before[name].shape:
                    now[name].copy_(before[name])
        for parameter, requires_grad, gradient in trainable:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
    if changed:
        raise RuntimeError(
            f"the evaluator changed the encoder ({changed[0]}); it was put back. "
            "An evaluator that trains the encoder works on a copy"
        )


_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    words = _WORDS.get(a.element_size())
    return torch.equal(a, b) if words is None else torch.equal(a.view(words), b.view(words))
