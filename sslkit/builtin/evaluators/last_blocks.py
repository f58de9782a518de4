"""Another evaluator on the last blocks of a vision transformer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import (
    Backbone,
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    RunFacts,
    Slot,
    slot,
)

from .stages import inner_problems, take_bank


class LastBlocks(ImageEvaluator):
    """What another evaluator finds in the class tokens of the last blocks of a vision transformer,
    side by side: the features of DINO's and DINOv2's linear evaluation.

    Each token is normalised, as by the network's final norm without its scale and shift, which are
    nothing to a linear classifier. Metrics: those of the evaluator. Skipped where the network has
    no class token. Source: Caron et al. 2021, arXiv 2104.14294, and its code, eval_linear.py."""

    class Config(EvaluatorConfig):
        evaluator: Slot[Evaluator] = slot("linear")
        """What measures them: an evaluator of features, such as `linear` or `few_label`."""
        count: PositiveInt = 4
        """Blocks, counted from the last: 4 for DINO's ViT-S, 1 for its ViT-B."""
        patches: bool = False
        """Whether the mean of the last block's patches stands beside: DINO's ViT-B, DINOv2."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from inner_problems(config.evaluator, "last_blocks", "a block")

    def evaluate(self, given: ImageInput) -> Evaluation:
        layout = given.encoder.token_layout if isinstance(given.encoder, Backbone) else None
        if layout is None or not layout.has_class_token:
            return Evaluation(skipped=f"{type(given.encoder).__name__} has no class token")
        if self.config.count > layout.blocks:
            return Evaluation(
                skipped=f"count {self.config.count} is above the {layout.blocks} blocks there are"
            )
        network = _LastBlocks(given.encoder, self.config.count, self.config.patches)
        evaluator = self.config.evaluator.build()
        noun = given.images.sample.noun
        bank = take_bank(network, given)
        found: Evaluation = evaluator.evaluate(
            FeatureInput(given.subject, bank, given.seed, noun=noun)
        )
        return found


class _LastBlocks(nn.Module):
    """(B, C, H, W) to (B, count * D), or (B, (count + 1) * D) with patches."""

    def __init__(self, encoder: Any, count: int, patches: bool) -> None:
        super().__init__()
        self.train(encoder.training)
        self._encoder = [encoder]  # not its child: modes are the encoder's own
        self._count, self._patches = count, patches

    def forward(self, images: Tensor) -> Tensor:
        blocks = self._encoder[0].tokens(images, blocks=range(-self._count, 0)).blocks
        parts = [_normed(block.prefix[:, 0]) for block in blocks]
        if self._patches:
            parts.append(_normed(blocks[-1].patches).mean(dim=1))
        return torch.cat(parts, dim=1)


def _normed(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
