"""Backbones and heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslkit.nn.image import Interpolation
from sslkit.nn.layer_groups import Named, groups_by_module_order

from .component import Component
from .tokens import NoTokensError, TokenLayout, Tokens


@dataclass(frozen=True)
class Preprocess:
    """How to prepare an image for an encoder at evaluation and in use. Pixel values stay in
    [0, 1]: the backbone normalises by itself."""

    size: int
    """Side of the input, pixels."""
    resize: int
    """Length of the shorter side before the centre crop; equal to `size` for small images."""
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    """What the backbone subtracts (for the record; already inside the backbone)."""
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class FeatureStage:
    """A place in a backbone where features lie on a grid."""

    name: str
    channels: int
    stride: int
    """Pixels of the image from one position to the next."""


class NoFeatureMapsError(Exception):
    """Raised by `Backbone.feature_maps` where a backbone has none; the message is one line."""


@dataclass(frozen=True)
class StartingWeights:
    """What a network starts from that is not random."""

    source: str
    """What to call it: the file, or the name of the model whose published weights they are."""
    path: Path | None = None
    """The file or folder, where it is one."""
    image_size: int | None = None
    """Side of the images that the weights were trained on, pixels, where it is known."""


@dataclass(frozen=True)
class TimmModel:
    """What `timm.create_model` makes a network from."""

    name: str
    arguments: Mapping[str, Any]
    """`img_size` among them is left out where the model takes any."""


class NoTimmModelError(Exception):
    """Raised by `Backbone.timm_model` where there is none; the message is one line."""


class Backbone(Component, nn.Module, ABC):
    """An encoder, (B, C, S, S) images in [0, 1] to (B, num_features). Owns its normalisation.

    Constructed as `cls(config, channels=C, image_size=S)`, where S is the side of the largest view.
    One of other samples (`takes_images = False`) is constructed as `cls(config, shape=(C, ...))`,
    the shape of the largest view, and takes views in training and whole samples when it is
    measured: pixels in [0, 1], anything else as the reader gives it.

    It is built under a generator that is seeded by the recipe, from which random weights must come,
    several times: to train, to measure the untrained baseline (`without_weights`), and to load what
    was trained. What it starts from is asked of the class, before anything is built. In evaluation
    mode `forward` changes nothing and gives each image the same features in any batch; all calls
    come from one thread."""

    kind = "backbone"
    takes_images: ClassVar[bool] = True
    """False: it takes samples of other shapes, such as series, and has no `preprocess`."""
    num_features: int
    preprocess: Preprocess
    """How images are prepared for it."""
    feature_stages: Sequence[FeatureStage] = ()
    """Where `feature_maps` can take features, first to last; empty where it cannot."""
    token_layout: TokenLayout | None = None
    """What `tokens` gives; None where it has none."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...

    def feature_maps(self, images: Tensor, stages: Sequence[int] = (-1,)) -> list[Tensor]:
        """Features on a grid, for dense tasks: one (B, channels, H, W) for each of `stages`, which
        are positions in `feature_stages`, from the end where negative. images: as for `forward`,
        and of other sizes and shapes where the network takes them. Optional.

        Raises NoFeatureMapsError where the backbone has no such features."""
        raise NoFeatureMapsError(f"the backbone {type(self).__name__} offers no feature maps")

    def tokens(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        lengths: Tensor | None = None,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        blocks: Sequence[int] = (),
    ) -> Tokens:
        """The tokens of images (B, C, H, W), in one pass, for methods that hide patches or compare
        them. `pool_tokens` of all of them is what `forward` gives. Optional.

        keep: (B, n) int64, the patches of each image that pass the network; the others cost nothing
        there. In any order, none twice. lengths: (B,) int64, at least 1, where images keep
        different numbers: so many of a row of `keep` count. Nothing attends to those behind them,
        which may name any patch, and they come out as zeros. masked: (B, N) bool, the patches
        whose embedding is replaced by `mask_token`, (D,), before positions are added. blocks:
        positions of blocks, from the end where negative, whose outputs are wanted too.

        Values are not looked at, so that no device is waited for. Raises NoTokensError where the
        backbone has no tokens or cannot drop them, ValueError for arguments of other shapes."""
        raise NoTokensError(f"the backbone {type(self).__name__} offers no tokens of patches")

    def pool_tokens(self, tokens: Tokens) -> Tensor:
        """(B, num_features): what `forward` makes of these tokens, of those of some patches too.
        Where it pools patches, not for tokens that were taken with `lengths`.

        Raises NoTokensError where the backbone has no tokens."""
        raise NoTokensError(f"the backbone {type(self).__name__} offers no tokens of patches")

    def class_attention(self, images: Tensor) -> Tensor:
        """(B, heads, N): how much the class token attends to each of N patches in the last block,
        as in evaluation mode and without gradient; with what it pays to itself and to registers,
        the row of a head sums to 1. For pictures. Changes nothing. Optional.

        Raises NoTokensError where the backbone has no such attention."""
        raise NoTokensError(f"the backbone {type(self).__name__} offers no attention")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles `forward`, as torch does, and `tokens`. Copies are not compiled."""
        super().compile(*args, **kwargs)
        if self.token_layout is not None:
            plain = type(self).tokens.__get__(self)
            vars(self)["tokens"] = torch.compile(plain, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("tokens", None)
        return state

    def export_state(self) -> dict[str, Tensor]:
        """The weights for `encoder.safetensors`, under the names that other tools expect."""
        return dict(self.state_dict())

    def import_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `export_state` gave."""
        self.load_state_dict(dict(state))

    def depth_groups(self) -> Sequence[Sequence[Named]]:
        """Every parameter with its name, once, in groups from the input to the output: the layers
        of fine-tuning with layer-wise decay. By default they follow from the order of modules."""
        return groups_by_module_order(self)

    @property
    def preparation(self) -> Preprocess | None:
        """`preprocess`; None where the encoder takes whole samples."""
        return self.preprocess if self.takes_images else None

    @classmethod
    def starting_weights(cls, config: Any) -> StartingWeights | None:
        """Where the network starts, if not from random weights; None where it does. Loads nothing.

        A run says so, and takes the untrained baseline from `without_weights`."""
        return None

    @classmethod
    def without_weights(cls, config: Any) -> Any:
        """`config` without its starting weights: what builds the network that trained weights are
        loaded into, and the untrained baseline. Must not need what the weights came from."""
        old = getattr(cls, "architecture", None)  # its name in interface 1
        return config if old is None else old(config)

    @classmethod
    def from_weights(cls, block: Mapping[str, Any], weights: Path) -> Mapping[str, Any] | None:
        """The block of a recipe, as it stands there, started from a file of weights instead of what
        it starts from; None where the backbone takes no such file. For `sslkit eval WEIGHTS`."""
        return None

    @classmethod
    def published(cls, model: str) -> Mapping[str, Any] | None:
        """The fields of the block that is a model with its published weights, prepared as it was
        trained; None where the backbone knows no such name. For `sslkit eval --backbone MODEL`."""
        return None

    @classmethod
    def published_names(cls) -> Iterable[str]:
        """The names that `published` knows, as far as they can be listed: for what a misspelt one
        may stand for."""
        return ()

    @classmethod
    def label(cls, config: Any) -> str | None:
        """What to call the network in tags, tables and model cards; None: by the component's name.
        A family of models gives the model's."""
        return None

    def timm_model(self) -> TimmModel:
        """The model of timm that takes `export_state` as its weights, for exports in timm's layout.

        Raises NoTimmModelError where there is none."""
        raise NoTimmModelError(f"the backbone {type(self).__name__} is no model of timm")


class Head(Component, nn.Module, ABC):
    """Maps (B, in_dim) to (B, out_dim). Constructed as `cls(config, in_dim=...)`."""

    kind = "head"
    out_dim: int

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...

    def as_layers(self) -> Sequence[nn.Module]:
        """The head as layers that are applied one after the other, a layer being a linear map with
        its normalisation and activation. By default the head is one layer."""
        return (self,)
