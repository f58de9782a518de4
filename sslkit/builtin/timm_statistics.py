"""The statistics that a timm backbone normalises pixels by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, PositiveFloat, Tag, model_validator

from sslkit.api import ComponentConfig

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, one value per channel."""

_STATISTICS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


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


def statistics(config: Any, channels: int) -> Statistics:
    """What the config of a backbone says for images of so many channels."""
    if isinstance(config.normalize, Normalization):
        return config.normalize.mean, config.normalize.std
    if config.normalize == "none":
        return (0.0,) * channels, (1.0,) * channels
    return _STATISTICS[config.normalize]
