"""Any timm model as a backbone, with a stem for small images and its own normalisation.

timm takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from sslkit.api import Backbone, ComponentConfig, Preprocess, RunFacts
from sslkit.builtin.timm_layers import blocks, reset_layers
from sslkit.builtin.timm_maps import feature_stages, take_feature_maps
from sslkit.builtin.timm_source import HUB, is_elsewhere, read_saved_model
from sslkit.builtin.timm_weights import (
    has_weights,
    model_problem,
    starting_weights,
    trained_statistics,
)
from sslkit.errors import CheckpointError
from sslkit.nn.layer_groups import Named, groups_by_names
from sslkit.nn.recompute import recompute
from sslkit.nn.stem import has_resnet_stem, use_small_stem

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
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
_TINY_IMAGE = 64
"""Up to this many pixels the stem for 224 px loses too much (Chen et al. 2020, B.9)."""


class Normalization(ComponentConfig):
    """Statistics of the pixel values, per channel, for images in [0, 1]."""

    mean: tuple[float, ...]
    """Subtracted, one value per channel."""
    std: tuple[PositiveFloat, ...]
    """Divided by, one value per channel."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        return self


def _is_block(value: object) -> str:
    return "statistics" if isinstance(value, Mapping | Normalization) else "name"


Normalize = Annotated[
    Annotated[Literal["none", "imagenet", "cifar10"], Tag("name")]
    | Annotated[Normalization, Tag("statistics")],
    Discriminator(_is_block),  # errors name the fields of the form that was meant, not of both
]


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
        interpolation: Literal["bilinear", "bicubic"] = "bilinear"
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
        yield from _normalization_problems(config, facts.channels)
        if config.pretrained and not has_weights(config.model):
            yield "pretrained", f"timm has no weights for {config.model}"
        sizes = sorted({max(view.sides) for view in facts.views}, reverse=True)
        if sizes:
            yield from _network_problems(config, facts.channels, sizes)

    @classmethod
    def warnings(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from _start_warnings(config, facts)
        size = max((max(view.sides) for view in facts.views), default=0)
        trained = config.pretrained or config.weights is not None
        if config.stem != "default" or trained or not 0 < size <= _TINY_IMAGE:
            return
        with torch.device("meta"):
            first = getattr(_create(config, facts.channels, size, pretrained=False), "conv1", None)
        if isinstance(first, nn.Conv2d) and first.kernel_size[0] >= 7 and first.stride[0] >= 2:
            yield (
                "stem",
                f"{config.model} begins with the stem for 224 px: views of {size} px have "
                f"{size // 4} px left before its first block; set stem: small",
            )

    def __init__(self, config: Config, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.model = _start(config, channels, image_size)
        _adapt_stem(self.model, config)
        if config.init == "torch":
            reset_layers(self.model)
        if (found := starting_weights(self.model, config)) is not None:
            self.model.load_state_dict(found.weights, strict=False)
        if config.recompute:
            for block in blocks(self.model)[:-1]:  # the last is needed again at once
                recompute(block)
        self.num_features = _width(self.model)
        self.feature_stages = feature_stages(self.model)
        mean, std = _statistics(config, channels)
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
    def architecture(cls, config: Config) -> Config:
        bare: dict[str, Any] = {"pretrained": False, "weights": None, "weights_prefix": None}
        if is_elsewhere(config.model):
            saved = read_saved_model(config.model)
            bare["model"] = saved.architecture
            bare["model_args"] = {**saved.arguments, **config.model_args}
        return config.model_copy(update=bare)


def _statistics(config: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(config.normalize, Normalization):
        return config.normalize.mean, config.normalize.std
    if config.normalize == "none":
        return (0.0,) * channels, (1.0,) * channels
    return _STATISTICS[config.normalize]


def _normalization_problems(config: Any, channels: int) -> Iterator[tuple[str, str]]:
    given = len(_statistics(config, channels)[0])
    if given != channels:
        yield (
            "normalize",
            f"statistics of {given} channel(s), but the images have {channels}: "
            "use none, or give mean and std with one value per channel",
        )


def _network_problems(config: Any, channels: int, sizes: list[int]) -> Iterator[tuple[str, str]]:
    """Builds the model without memory (on the meta device) and sends each view size through."""
    try:
        with torch.device("meta"):
            model = _create(config, channels, sizes[0], pretrained=False)
    except Exception as error:  # timm raises whatever its models raise; the user gets one line
        yield _blamed_field(config, error), f"timm cannot build {config.model}: {_line(error)}"
        return
    yield from _stem_problems(model, config)
    if config.recompute and not blocks(model):
        yield "recompute", f"timm knows no blocks of {config.model}: set it to false"
    _adapt_stem(model, config)
    for size in sizes:
        reason = _refusal(model, channels, size)
        if reason:
            yield "model", f"{config.model} cannot take {size} px views: {reason}"
    try:
        if not config.model.startswith(HUB):  # downloaded when the network is built, not before
            starting_weights(model, config)
    except CheckpointError as error:
        yield "model" if config.weights is None else "weights", str(error)


def _refusal(model: nn.Module, channels: int, size: int) -> str | None:
    """Why a model on the meta device cannot take views of this size, or None."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and size % patch[0] != 0:
        return f"not a multiple of its patch size, {patch[0]}"
    try:
        with torch.no_grad():
            model.eval()(torch.empty(2, channels, size, size, device="meta"))
    except NotImplementedError:
        # Not the model's fault: some operation has no form without data. Before the first step the
        # real model takes two images (`check_encoder`), and refuses there if it must.
        return None
    except Exception as error:
        return _line(error)
    return None


def _stem_problems(model: nn.Module, config: Any) -> Iterator[tuple[str, str]]:
    if config.stem == "default":
        return
    if not has_resnet_stem(model):
        yield "stem", f"{config.stem} is for ResNets, and {config.model} is none: use default"
    elif config.pretrained and isinstance(model.conv1, nn.Conv2d):
        yield (
            "stem",
            f"{config.stem} replaces the first convolution, which would drop its pretrained "
            "weights: use default, or start from weights trained with this stem",
        )


def _create(config: Any, channels: int, image_size: int, *, pretrained: bool) -> nn.Module:
    """The timm model as configured, before the stem is adapted."""
    import timm

    if is_elsewhere(config.model):  # its weights are loaded apart, see `starting_weights`
        config, pretrained = TimmBackbone.architecture(config), False
    arguments: dict[str, Any] = dict(config.model_args)
    arguments.update(num_classes=0, in_chans=channels, pretrained=pretrained)
    arguments.update(global_pool=config.pool, patch_size=config.patch_size)  # None: not passed on
    if config.drop_path_rate > 0.0:
        arguments["drop_path_rate"] = config.drop_path_rate
    model: nn.Module
    try:
        model = timm.create_model(config.model, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        model = timm.create_model(config.model, **arguments)  # takes any size, as ResNets do
    return model


def _start(config: Any, channels: int, image_size: int) -> nn.Module:
    """The model with timm's published weights, or with random ones.

    Raises CheckpointError where the published weights cannot be had."""
    problem = model_problem(config.model, pretrained=config.pretrained)
    if problem is not None:
        raise CheckpointError(f"backbone.model: {problem}")
    if not config.pretrained or is_elsewhere(config.model):
        return _create(config, channels, image_size, pretrained=False)
    try:
        return _create(config, channels, image_size, pretrained=True)
    except Exception as error:  # whatever the download raises
        raise CheckpointError(
            f"backbone.pretrained: no weights for {config.model}: {_line(error)}; "
            "without internet, give a weight file as backbone.weights"
        ) from error


def _adapt_stem(model: nn.Module, config: Any) -> None:
    if config.stem != "default" and has_resnet_stem(model):
        keep_pool = config.stem == "small_pool"
        use_small_stem(model, keep_pool=keep_pool, padding=config.stem_padding)


def _width(model: nn.Module) -> int:
    """Width of the features: some families widen them after pooling (MobileNetV3, VGG)."""
    width: int = getattr(model, "head_hidden_size", None) or model.num_features  # type: ignore[assignment]
    return width


def _start_warnings(config: Any, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What was done with the names in a weight file, and statistics that are not the weights'."""
    trained = trained_statistics(config.model) if config.pretrained else None
    if trained is not None and not _equal(trained, _statistics(config, facts.channels)):
        mean, std = ([round(value, 6) for value in values] for values in trained)
        yield (
            "normalize",
            f"the weights of {config.model} were trained with other statistics of the pixels; "
            f"set normalize: {{mean: {mean}, std: {std}}}",
        )
    if config.weights is not None and facts.views:
        with torch.device("meta"):
            model = _create(config, facts.channels, max(facts.views[0].sides), pretrained=False)
        _adapt_stem(model, config)
        found = starting_weights(model, config)
        if found is not None and (note := found.note()):
            yield "weights", note


def _equal(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    """Whether statistics are the same, rounding apart."""
    return [[round(v, 3) for v in values] for values in one] == [
        [round(v, 3) for v in values] for values in other
    ]


def _blamed_field(config: Any, error: Exception) -> str:
    """The field whose name the message of an error holds, for the position in the recipe."""
    text = str(error)
    for name in config.model_args:
        if name in text:
            return f"model_args.{name}"
    for argument, name in (
        ("drop_path_rate", "drop_path_rate"), ("patch_size", "patch_size"), ("pool", "pool"),
    ):  # fmt: skip
        if argument in text:
            return name
    return "model"


def _line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
