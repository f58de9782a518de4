"""Any timm model as a backbone, with a stem for small images and its own normalisation.

timm takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor

from sslkit.api import (
    Backbone,
    ComponentConfig,
    NoTimmModelError,
    Preprocess,
    RunFacts,
    StartingWeights,
    TimmModel,
    Tokens,
)
from sslkit.nn.image import Interpolation
from sslkit.nn.layer_groups import Named, groups_by_names
from sslkit.nn.recompute import recompute

from .timm_attention import class_attention
from .timm_checks import network_problems, normalization_problems, start_warnings, stem_warnings
from .timm_layers import blocks, reset_layers
from .timm_maps import feature_stages, take_feature_maps
from .timm_network import adapt_stem, bare_config, feature_width, start
from .timm_statistics import Normalize, statistics
from .timm_tokens import TokenRequest, pool_tokens, take_tokens, token_layout
from .timm_weights import (
    has_weights,
    model_problem,
    published_fields,
    read_starting_weights,
    trained_size,
)

_OWN_ARGUMENTS = {
    "num_classes": "it is always 0",
    "in_chans": "it follows from the data",
    "img_size": "it follows from the augmentation",
    "patch_size": "use patch_size",
    "global_pool": "use pool",
    "drop_path_rate": "use drop_path_rate",
    "pretrained": "use pretrained",
    "checkpoint_path": "use weights",
    "features_only": "a backbone returns one vector per image, and maps by feature_maps",
}
_SMALL_IMAGE = 96
"""Up to this many pixels images are evaluated whole, without a centre crop."""


class TimmBackbone(Backbone):
    """A model of `timm.create_model` without classifier; features after its pooling."""

    class Config(ComponentConfig):
        model: str
        """Name of the model, such as `resnet18`; `timm.list_models()` lists them. With `pretrained`
        also `local-dir:FOLDER` or `hf-hub:USER/MODEL`, as timm saves models."""
        stem: Literal["default", "small", "small_pool"] = "default"
        """ResNets only. `small`: first convolution 3x3, stride 1, and no max-pool, for 32 px;
        `small_pool` keeps the max-pool, for 96 px."""
        stem_padding: Literal[1, 2] = 1
        """Padding of the small stem's convolution; 2 reproduces solo-learn."""
        pretrained: bool = False
        """Start from timm's published weights, which are downloaded."""
        weights: Path | None = None
        """Start from a weight file (.safetensors, .pth), of timm or of a method's official code, or
        from the folder of a run or of an export for timm."""
        weights_prefix: str | None = None
        """What the names of the backbone begin with in `weights`, such as `teacher.backbone.`; null
        finds it, where one network in the file fits."""
        init: Literal["timm", "torch"] = "timm"
        """Weights of a network that starts untrained. `timm`: as its authors initialise it, for
        ResNets as torchvision does (`model_args: {zero_init_last: false}` for its default);
        `torch`: every layer as torch makes it, as in code that initialises nothing (lightly)."""
        normalize: Normalize = "imagenet"
        """Statistics that the backbone applies to images in [0, 1]: a name, or `mean` and `std`
        with one value per channel."""
        pool: Literal["avg", "max", "token", "map"] | None = None
        """timm's `global_pool`; null leaves the model's own. `token` and `map` are for ViTs."""
        patch_size: PositiveInt | None = None
        """Patch side of a ViT in pixels; null leaves the model's own."""
        drop_path_rate: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Stochastic depth."""
        recompute: bool = False
        """Keeps the input of each block alone in training, and computes the block again in the
        backward pass: the same gradient to the bit, batch statistics of the whole batch included,
        for less memory and more time. Not with `train.compile`."""
        interpolation: Interpolation = "bilinear"
        """How images are resized at evaluation and in use."""
        model_args: dict[str, bool | int | float | str] = Field(default={})
        """Further arguments of `timm.create_model`, such as `{zero_init_last: false}`."""

        @field_validator("model_args")
        @classmethod
        def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
            for name in value:
                if name in _OWN_ARGUMENTS:
                    raise ValueError(f"{name} cannot be set here: {_OWN_ARGUMENTS[name]}")
            return value

        @model_validator(mode="after")
        def _one_start(self) -> Self:
            if self.pretrained and self.weights is not None:
                raise ValueError("pretrained and weights exclude each other: keep one")
            if self.weights_prefix is not None and self.weights is None:
                raise ValueError("weights_prefix: is of the names in weights, and none are given")
            if self.init != "timm" and (self.pretrained or self.weights is not None):
                raise ValueError("init: it is for networks that start untrained: leave it out")
            return self

    config: Config

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        unknown = model_problem(config.model, pretrained=config.pretrained)
        if unknown is not None:
            yield "model", unknown
            return
        yield from normalization_problems(config, facts.channels)
        if config.pretrained and not has_weights(config.model):
            yield "pretrained", f"timm has no weights for {config.model}"
        sizes = sorted({max(view.sides) for view in facts.views}, reverse=True)
        if sizes:
            yield from network_problems(config, facts.channels, sizes)

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from start_warnings(config, facts)
        yield from stem_warnings(config, facts)

    def __init__(self, config: Config, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.model = start(config, channels, image_size)
        adapt_stem(self.model, config)
        if config.init == "torch":
            reset_layers(self.model)
        if (found := read_starting_weights(self.model, config)) is not None:
            self.model.load_state_dict(found.weights, strict=False)
        if config.recompute:
            for block in blocks(self.model)[:-1]:  # the last is needed again at once
                recompute(block)
        self.num_features = feature_width(self.model)
        self.feature_stages = feature_stages(self.model)
        self.token_layout = token_layout(self.model)
        mean, std = statistics(config, channels)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        small = image_size <= _SMALL_IMAGE
        self.preprocess = Preprocess(
            size=image_size,
            resize=image_size if small else round(image_size * 256 / 224),
            interpolation=config.interpolation,
            mean=mean,
            std=std,
        )

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(self.normalized(images))
        return features

    def feature_maps(self, images: Tensor, stages: Sequence[int] = (-1,)) -> list[Tensor]:
        """timm's `forward_intermediates`, patch tokens as (B, channels, H, W), after the norm that
        the model applies to its last features where that can be told apart from pooling. The mean
        over the last map of a ResNet is what `forward` gives."""
        return take_feature_maps(self.model, self.normalized(images), stages)

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
        """Those of timm's VisionTransformers, and of Beits, which cannot drop any. They come behind
        the final norm, `norm`, where the model has one for tokens: models that pool the mean
        normalise it afterwards, unless `model_args: {fc_norm: false}` says otherwise."""
        asked = TokenRequest(keep, lengths, masked, mask_token, blocks)
        return take_tokens(self.model, self.normalized(images), asked)

    def pool_tokens(self, tokens: Tokens) -> Tensor:
        """As timm pools and then normalises them."""
        return pool_tokens(self.model, tokens)

    def class_attention(self, images: Tensor) -> Tensor:
        """That of timm's VisionTransformers and Beits, which are asked for it unfused."""
        return class_attention(self.model, self.normalized(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Images as `self.model` expects them, for methods that work on its layers."""
        if self.config.normalize == "none":
            return images
        return (images - self.mean) / self.std

    def export_state(self) -> dict[str, Tensor]:
        """The weights under timm's own names: `timm.create_model(name, num_classes=0)` loads them
        with `checkpoint_path`. Normalise first, as `preprocess` says. With a small stem the model
        needs `sslkit.nn.stem.use_small_stem` before it can take them."""
        state = self.model.state_dict()
        return {name: value.detach().contiguous() for name, value in state.items()}

    def import_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))

    def depth_groups(self) -> Sequence[Sequence[Named]]:
        """timm's own grouping: the stem, then stages (ResNets, ConvNeXts, Swins) or blocks (ViTs);
        a final norm belongs to the last of them."""
        matcher = getattr(self.model, "group_matcher", None)
        if matcher is None:
            return super().depth_groups()
        from timm.models import group_parameters

        return groups_by_names(self, group_parameters(self.model, matcher(coarse=True)), "model.")

    @classmethod
    def without_weights(cls, config: Config) -> Config:
        bare: TimmBackbone.Config = bare_config(config)
        return bare

    @classmethod
    def starting_weights(cls, config: Config) -> StartingWeights | None:
        if config.weights is not None:
            return StartingWeights(str(config.weights), config.weights)
        if not config.pretrained:
            return None
        return StartingWeights(config.model, image_size=trained_size(config.model))

    @classmethod
    def from_weights(cls, block: Mapping[str, Any], weights: Path) -> Mapping[str, Any]:
        others = {key: block[key] for key in block if key not in ("pretrained", "init")}
        return {**others, "weights": str(weights)}

    @classmethod
    def published(cls, model: str) -> Mapping[str, Any] | None:
        return published_fields(model)

    @classmethod
    def published_names(cls) -> Iterable[str]:
        import timm

        return dict.fromkeys(name.partition(".")[0] for name in timm.list_models(pretrained=True))

    @classmethod
    def label(cls, config: Config) -> str:
        """The model's name."""
        return config.model

    def timm_model(self) -> TimmModel:
        config, channels = self.config, len(self.preprocess.mean)
        if config.stem != "default":
            raise NoTimmModelError(f"timm has no {config.model} with stem: {config.stem}")
        wanted = {
            "img_size": self.preprocess.size,
            "patch_size": config.patch_size,
            "global_pool": config.pool,
            "in_chans": channels if channels != 3 else None,
            **config.model_args,
        }
        given = {key: value for key, value in wanted.items() if value is not None}
        return TimmModel(config.model, given)
