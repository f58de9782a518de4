"""BEiT: predict the codes that a tokenizer gives to masked patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    Progress,
    RunFacts,
    StepOutput,
)
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred
from sslkit.nn.numerics import full_precision
from sslkit.nn.patches import gather_patches, unpatchify

from .block_masks import BlockMasks
from .code_use import code_shares, perplexity
from .pixels import grid_of, layout_of
from .tokenizer_file import HOW, load_tokenizer

_OF_TRAINING = ("tokenizer.", "mask_token", "predict.")
"""What of the state only training needs."""


class BEiT(Method):
    """Blocks of patches are masked; where they are, one linear layer predicts which of the K codes
    of a tokenizer stands there. The tokenizer was trained before, sees the whole image and stays as
    it is.

    The loss is the cross entropy, mean over masked patches: ln K when nothing is known. Masked
    patches pass the encoder as a learned token. An image is brought to the size at which the
    tokenizer gives one code for each patch. Source: Bao et al. 2022, arXiv 2106.08254.
    """

    trains_class_token: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = MappingProxyType({"targets": "prototypes"})
    """What is predicted stands still, so that training cannot make it equal; but a tokenizer whose
    codebook has collapsed gives every patch the same code."""

    class Config(ComponentConfig):
        tokenizer: Path | None = None
        """The folder of a finished run that trained a tokenizer, or its `encoder.safetensors`.
        Required."""
        mask_ratio: float = Field(default=0.383, gt=0.0, lt=1.0)
        """Part of the patches that is masked, in blocks: 75 of 196."""
        min_block: PositiveInt = 16
        """Least area that is drawn for a block, patches; 16 is for 196 of them."""

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(facts.views) != 1:
            yield "", f"beit needs 1 view, but the augmentation makes {len(facts.views)}"
        if config.tokenizer is None:
            yield "tokenizer", f"is missing; {HOW}"

    config: Config

    @classmethod
    def for_encoder(cls, config: Config, backbone: Backbone, facts: RunFacts) -> BEiT:
        return cls(config, backbone, facts, training=False)

    def __init__(
        self, config: Config, backbone: Backbone, facts: RunFacts, *, training: bool = True
    ) -> None:
        """training: False leaves out the tokenizer, whose file may be gone, and what predicts its
        codes."""
        super().__init__(config, backbone, facts)
        layout = layout_of(backbone, "beit")
        grid = grid_of(layout, facts)
        self.masks = BlockMasks(grid, config.mask_ratio, config.min_block)
        self.patch_size = layout.patch_size
        if not training:
            self.register_load_state_dict_pre_hook(_take_the_backbone)  # type: ignore[no-untyped-call]
            return
        tokenizer: Any = load_tokenizer(config.tokenizer, facts.channels)
        self.tokenizer = tokenizer.requires_grad_(False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, layout.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.predict = nn.Linear(layout.width, tokenizer.num_codes)
        nn.init.trunc_normal_(self.predict.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.predict.bias)
        self.register_load_state_dict_pre_hook(_refuse_other_codes)  # type: ignore[no-untyped-call]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, F), of the masked images; targets (B, K), the part of the patches that has
        each code; loss (B,) and accuracy (B,), of each image."""
        (images,) = batch.views
        features, scores, masked = self._scores(batch)
        codes = self.codes(images)
        wanted = codes.gather(1, self.masks.numbers(masked))
        losses = F.cross_entropy(scores.transpose(1, 2), wanted, reduction="none")
        right = (scores.argmax(2) == wanted).to(losses.dtype)
        return {
            "features": features,
            "targets": code_shares(codes, scores.shape[2]).to(losses.dtype),
            "loss": losses.mean(1),
            "accuracy": right.mean(1),
        }

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, F); the scores of the codes at the masked patches, (B, M, K), in float32 at
        least; which patches are masked, (B, N)."""
        masked = self.masks.draw(batch.random)
        token = self.mask_token[0, 0]
        tokens = self.backbone.tokens(batch.views[0], masked=masked, mask_token=token)
        there = gather_patches(tokens.patches, self.masks.numbers(masked))
        return self.backbone.pool_tokens(tokens), full_precision(self.predict(there)), masked

    def codes(self, images: Tensor) -> Tensor:
        """(B, N) int64, of whole images."""
        rows, columns = self.masks.grid
        size = rows * self.tokenizer.stride, columns * self.tokenizer.stride
        if images.shape[-2:] != size:
            images = F.interpolate(
                full_precision(images), size, mode="bicubic", antialias=True
            ).clamp(0.0, 1.0)
        found: Tensor = self.tokenizer.codes_of(images)
        return found.flatten(1)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        def metrics() -> dict[str, Tensor]:
            return {
                "masked_accuracy": embeddings["accuracy"].mean(),
                "code_perplexity": perplexity(embeddings["targets"]),
            }

        # All images have as many masked patches: the mean over images is that over patches.
        return StepOutput(embeddings["loss"].mean(), Deferred(metrics))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, S, S) in [0, 1]: as they are, without their masked patches, as their codes
        have them, and with the codes of masked patches as they were predicted."""
        (images,) = batch.views
        codes = self.codes(images)
        _, scores, masked = self._scores(batch)
        filled = codes.scatter(1, self.masks.numbers(masked), scores.argmax(2))
        values = images.shape[1] * self.patch_size[0] * self.patch_size[1]
        where = unpatchify(
            masked[..., None].expand(-1, -1, values), self.patch_size, self.masks.grid
        )
        return {
            "image": images,
            "seen": torch.where(where, 0.5, images),
            "codes": self._pictured(codes, images),
            "reconstruction": self._pictured(filled, images),
        }

    def _pictured(self, codes: Tensor, like: Tensor) -> Tensor:
        """What the tokenizer makes of codes, (B, N), in the size of the images."""
        made = self.tokenizer.images_of(codes.view(-1, *self.masks.grid))
        resized = F.interpolate(made, like.shape[-2:], mode="bilinear", antialias=True)
        return resized.to(like.dtype)


def _take_the_backbone(method: BEiT, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leaves out of a checkpoint what `for_encoder` did not make."""
    for name in [*state]:
        if name.startswith(tuple(f"{prefix}{part}" for part in _OF_TRAINING)):
            del state[name]


def _refuse_other_codes(method: BEiT, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Raises RecipeError where a checkpoint has another tokenizer than the recipe names: training
    would go on with the checkpoint's, and the run would say that it had the recipe's. Tensors
    of which a rank has a part alone are not compared."""
    for name, ours in method.tokenizer.state_dict().items():
        theirs = state.get(f"{prefix}tokenizer.{name}")
        if theirs is None or not (type(ours) is type(theirs) is Tensor):
            continue
        if not torch.equal(theirs.to(ours), ours):
            raise RecipeError(
                f"method.tokenizer: {method.config.tokenizer} is another tokenizer than the one "
                "that the checkpoint was trained with; name that one"
            )
