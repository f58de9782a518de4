"""Jigsaw: say in which order the tiles of an image were shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import factorial
from types import MappingProxyType

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Head,
    Method,
    Progress,
    RunFacts,
    Slot,
    StepOutput,
    slot,
)
from sslkit.errors import RecipeError, first_line_of
from sslkit.randomness import SampleRandom

from .classification_task import classified, one_square_image, refuse_other_width
from .permutations import far_permutations
from .tiles import GRID, NUM_TILES, cut_tiles, room, standardised


class Jigsaw(Method):
    """Nine tiles of every image, shuffled by one of `num_permutations` known permutations, pass the
    backbone each by itself; a classifier of all nine says which permutation it was: cross entropy,
    ln(num_permutations) at chance.

    Tiles are cut out of the view, at a random place within their cells, so that edges do not go on
    from one to the next, and each channel of each has mean 0 and variance 1. Place p of the
    shuffled tiles holds tile `permutations[label, p]`. The permutations are part of the state: a
    resumed run has those that it began with.
    Source: Noroozi and Favaro 2016, arXiv 1603.09246; the heads are those of VISSL for ResNets.
    """

    must_not_collapse = MappingProxyType({"features": "spread"})
    """And not "logits": they are about the order alone."""

    class Config(ComponentConfig):
        num_permutations: int = Field(default=1000, ge=2, le=factorial(NUM_TILES))
        """Classes: permutations of nine tiles, chosen one after the other for the highest mean
        Hamming distance to those before."""
        permutations_seed: NonNegativeInt = 0
        """Chooses the first permutation and among those that are equally far."""
        tile_size: int = Field(default=64, ge=2)
        """Side of a tile, pixels. What a third of the view has beyond it is the room in which each
        tile is placed at random: the gap to its neighbours, and the jitter."""
        standardize_tiles: bool = True
        """Gives every channel of every tile mean 0 and variance 1."""
        tile_head: Slot[Head] = slot("mlp", num_layers=1, out_dim=1000, output_norm="bn")
        """Maps the features of a tile to what the classifier sees of it, after a ReLU; one head for
        all tiles."""
        head: Slot[Head] = slot(
            "mlp", num_layers=1, out_dim=1000, output_norm="none", output_bias=True
        )
        """Maps the outputs of all nine, one after the other, to the logits: `out_dim` must be
        `num_permutations`."""

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        unfit = list(one_square_image("jigsaw", facts))
        yield from unfit
        if unfit or not facts.views:
            return
        side = facts.views[0].sides[0]
        if room(side, config.tile_size) < 0:
            yield (
                "tile_size",
                f"{GRID} x {GRID} tiles of {config.tile_size} pixels do not fit into views of "
                f"{side}; take at most {side // GRID}, or larger views",
            )

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        side = max((max(view.sides) for view in facts.views), default=0)
        if side and room(side, config.tile_size) == 0:
            yield (
                "tile_size",
                f"tiles of {config.tile_size} pixels touch in views of {side}, so that lines that "
                "go on across their edges solve the task; published tiles leave 15 % of a third of "
                f"the view and more: take {side // GRID * 85 // 100}",
            )

    @classmethod
    def plan_facts(cls, config: Config, facts: RunFacts) -> Mapping[str, str | int | float]:
        return {"tiles per step": NUM_TILES * facts.batch_size}

    def __init__(self, config: Config, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.tile_head = config.tile_head.build(in_dim=backbone.num_features)
        self.head = config.head.build(in_dim=NUM_TILES * self.tile_head.out_dim)
        refuse_other_width("head", self.head, config.num_permutations)
        self._refuse_fixed_sizes(facts.channels)
        chosen = far_permutations(config.num_permutations, config.permutations_seed)
        self.register_buffer("permutations", chosen.clone())
        for name in ("mean", "std"):
            value = torch.tensor(getattr(backbone.preprocess, name)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    permutations: Tensor
    mean: Tensor
    std: Tensor

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.tile_head.as_layers()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, 9, F) of the shuffled tiles; logits (B, num_permutations)."""
        tiles = self._shuffled_tiles(batch.views[0], batch.random)
        features = self.backbone(tiles.flatten(0, 1))
        seen = self.tile_head(features).relu()
        logits = self.head(seen.unflatten(0, (-1, NUM_TILES)).flatten(1))
        return {"features": features.unflatten(0, (-1, NUM_TILES)), "logits": logits}

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        return classified(embeddings["logits"], self._labels(batch.random))

    def _labels(self, random: SampleRandom) -> Tensor:
        """(B,) int64: which permutation each image gets; the same whenever it is asked."""
        return random.integers("permutation", 1, len(self.permutations))[:, 0]

    def _shuffled_tiles(self, images: Tensor, random: SampleRandom) -> Tensor:
        """(B, 9, C, t, t), as the backbone is to be given them."""
        size = self.config.tile_size
        shifts = random.integers("shift", 2 * NUM_TILES, room(images.shape[-1], size) + 1)
        tiles = cut_tiles(images, shifts.reshape(-1, NUM_TILES, 2), size)
        if self.config.standardize_tiles:
            # The backbone subtracts its mean and divides by its deviation, which leaves these.
            tiles = standardised(tiles) * self.std + self.mean
        order = self.permutations[self._labels(random)]
        return tiles[torch.arange(len(order), device=order.device)[:, None], order]

    def _refuse_fixed_sizes(self, channels: int) -> None:
        """Raises RecipeError for a backbone that takes images of the size of the view alone."""
        size, weight = self.config.tile_size, next(self.backbone.parameters())
        was_training = self.backbone.training
        try:
            with torch.no_grad():
                self.backbone.eval()(weight.new_zeros(1, channels, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            if weight.is_meta and isinstance(error, NotImplementedError):
                return  # an operation without a form there; a run tries it with real weights
            raise RecipeError(
                f"method.tile_size: the backbone takes no images of {size} pixels beside its own "
                f"size, which tiles are; take a convolutional one ({first_line_of(error)})"
            ) from None
        finally:
            self.backbone.train(was_training)
