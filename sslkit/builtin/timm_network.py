"""Making timm models as a backbone is configured. timm takes seconds to import, so it is imported
where it is used."""

from __future__ import annotations

from typing import Any

from torch import nn

from sslkit.errors import CheckpointError, first_line_of
from sslkit.nn.stem import has_resnet_stem, use_small_stem

from .timm_source import is_elsewhere, read_saved_model
from .timm_weights import model_problem


def bare_config(config: Any) -> Any:
    """The config without the weights that it starts from."""
    bare: dict[str, Any] = {"pretrained": False, "weights": None, "weights_prefix": None}
    if is_elsewhere(config.model):
        saved = read_saved_model(config.model)
        bare["model"] = saved.architecture
        bare["model_args"] = {**saved.arguments, **config.model_args}
    return config.model_copy(update=bare)


def create(config: Any, channels: int, image_size: int, *, pretrained: bool) -> nn.Module:
    """The timm model as configured, before the stem is adapted."""
    import timm

    if is_elsewhere(config.model):  # its weights are loaded apart, see `read_starting_weights`
        config, pretrained = bare_config(config), False
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


def start(config: Any, channels: int, image_size: int) -> nn.Module:
    """The model with timm's published weights, or with random ones.

    Raises CheckpointError where the published weights cannot be had."""
    problem = model_problem(config.model, pretrained=config.pretrained)
    if problem is not None:
        raise CheckpointError(f"backbone.model: {problem}")
    if not config.pretrained or is_elsewhere(config.model):
        return create(config, channels, image_size, pretrained=False)
    try:
        return create(config, channels, image_size, pretrained=True)
    except Exception as error:  # whatever the download raises
        raise CheckpointError(
            f"backbone.pretrained: no weights for {config.model}: {first_line_of(error)}; "
            "without internet, give a weight file as backbone.weights"
        ) from error


def adapt_stem(model: nn.Module, config: Any) -> None:
    """Gives a ResNet the stem that the config names."""
    if config.stem != "default" and has_resnet_stem(model):
        keep_pool = config.stem == "small_pool"
        use_small_stem(model, keep_pool=keep_pool, padding=config.stem_padding)


def feature_width(model: nn.Module) -> int:
    """Width of the features: some families widen them after pooling (MobileNetV3, VGG)."""
    width: int = getattr(model, "head_hidden_size", None) or model.num_features  # type: ignore[assignment]
    return width
