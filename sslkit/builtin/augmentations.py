"""The augmentation family of SimCLR: random resized crop, flip, rotation, colour jitter, grey,
blur and solarise, each view with settings of its own.

With the right fields it is the augmentation of SimCLR, MoCo, BYOL, SimSiam, Barlow Twins, VICReg,
SwAV, DINO (multi-crop) and MAE (crop and flip alone).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from pydantic import Field, PositiveInt, model_serializer, model_validator
from torch import Tensor

from sslkit.api import (
    ComponentConfig,
    FractionRange,
    Geometry,
    ImageAugmentation,
    Params,
    PositiveRange,
    RunFacts,
    ViewSpec,
)
from sslkit.nn.color import grayscale
from sslkit.nn.image import (
    Interpolation,
    gaussian_blur,
    random_resized_crop_boxes,
    rotate,
    solarize,
)
from sslkit.nn.jitter import color_jitter
from sslkit.nn.masked_apply import select_rows
from sslkit.randomness import SampleRandom

_SHARP_SIZE = 32
"""Up to this many pixels a blur takes away what little there is to see."""


class ViewSettings(ComponentConfig):
    """What happens to a view, in this order: crop, flip, rotation, jitter, grey, blur, solarise."""

    size: PositiveInt = 224
    """Side of the view, pixels."""
    crop_scale: FractionRange = (0.08, 1.0)
    """Range of the crop's area, as a fraction of the image's."""
    crop_ratio: PositiveRange = (3 / 4, 4 / 3)
    """Range of the crop's width / height, log-uniform."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resize, antialiased."""
    flip: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of mirroring left-right."""
    rotation_degrees: float = Field(default=0.0, ge=0.0, le=180.0)
    """Rotation by an angle uniform in plus or minus this; what comes from outside is black."""
    rotation_probability: float = Field(default=1.0, ge=0.0, le=1.0)
    """Probability of the rotation; without effect where `rotation_degrees` is 0."""
    jitter_strength: float = Field(default=1.0, ge=0.0)
    """Multiplies `brightness`, `contrast`, `saturation`, `hue`: 1 for ImageNet, 0.5 for CIFAR."""
    jitter_probability: float = Field(default=0.8, ge=0.0, le=1.0)
    """Probability of the colour jitter: its four operations in a random order per sample."""
    brightness: float = Field(default=0.8, ge=0.0)
    """Factor uniform in 1 plus or minus this (times `jitter_strength`), never below 0."""
    contrast: float = Field(default=0.8, ge=0.0)
    """As `brightness`, about the mean grey value of the image."""
    saturation: float = Field(default=0.8, ge=0.0)
    """As `brightness`, about the grey value of each pixel. Needs RGB."""
    hue: float = Field(default=0.2, ge=0.0)
    """Turn of the hue uniform in plus or minus this part of a circle (times `jitter_strength`), at
    most 0.5. Needs RGB."""
    grayscale_probability: float = Field(default=0.2, ge=0.0, le=1.0)
    """Probability of turning grey. Needs RGB."""
    blur: bool = True
    """False switches the Gaussian blur off."""
    blur_probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of the blur; without effect where `blur` is false."""
    blur_kernel: PositiveInt | None = None
    """Side of the blur's kernel, odd, pixels; null: 10 % of `size`."""
    blur_sigma: PositiveRange = (0.1, 2.0)
    """Range of the blur's standard deviation, uniform, pixels."""
    solarize_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of inverting all values from `solarize_threshold` on."""
    solarize_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """Where solarisation begins, 0 to 1."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: {self.blur_kernel} is even: set an odd number")
        return self

    @property
    def strengths(self) -> dict[str, float]:
        """The jitter operations that are on, with their effective strength."""
        names = ("brightness", "contrast", "saturation", "hue")
        scaled = {name: self.jitter_strength * getattr(self, name) for name in names}
        on = self.jitter_probability > 0.0
        return {name: value for name, value in scaled.items() if on and value > 0.0}

    @property
    def blur_kernel_size(self) -> int:
        """The kernel that `blur_kernel` stands for: 23 at 224 px, 3 at 32 px."""
        return self.blur_kernel or 2 * (self.size // 10 // 2) + 1

    @property
    def blur_rate(self) -> float:
        """Probability of the blur; 0 where it would change nothing."""
        return self.blur_probability if self.blur and self.blur_kernel_size > 1 else 0.0

    @property
    def rotation_rate(self) -> float:
        """Probability of the rotation; 0 where it would change nothing."""
        return self.rotation_probability if self.rotation_degrees > 0.0 else 0.0


class ViewBlock(ViewSettings):
    """Settings of one view, or of several alike. What is absent is as at the top level."""

    count: PositiveInt = 1
    """How many views are made with this block."""
    role: str = "global"
    """What a method may tell views apart by: `global`, or `local` for small crops."""

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, handler: Any) -> dict[str, Any]:
        written = handler(self)
        return {name: written[name] for name in written if name in self.model_fields_set}


class SimCLRConfig(ViewSettings):
    """The fields are the settings of all views; `views` changes some of them per view."""

    size: PositiveInt
    """Side of the view, pixels."""
    num_views: PositiveInt = 2
    """Number of views of each image; follows from `views` where that is given."""
    views: tuple[ViewBlock, ...] | None = Field(default=None, min_length=1)
    """One block per view for views that differ: only the fields that differ."""

    @model_validator(mode="after")
    def _count_views(self) -> Self:
        if self.views is not None and "num_views" not in self.model_fields_set:
            # Frozen for everybody else. A copy would be dropped where the class is called directly.
            object.__setattr__(self, "num_views", sum(block.count for block in self.views))
        return self

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        if self.views is not None:
            total = sum(block.count for block in self.views)
            if total != self.num_views:
                raise ValueError(
                    f"num_views: {self.num_views}, but `views` makes {total}: leave num_views out"
                )
        for block, settings in enumerate(self.blocks()):
            hue = settings.jitter_strength * settings.hue
            if hue > 0.5:
                raise ValueError(
                    f"{self.path_of(block, 'hue')}: {hue:g} after jitter_strength is over half "
                    "a circle: set hue * jitter_strength <= 0.5"
                )
        return self

    def blocks(self) -> list[ViewBlock]:
        """The complete settings of each block of `views`, or of the top level."""
        top = {name: getattr(self, name) for name in ViewSettings.model_fields}
        if self.views is None:
            return [ViewBlock(**top, count=self.num_views)]
        own = [{name: getattr(view, name) for name in view.model_fields_set} for view in self.views]
        return [ViewBlock(**{**top, **fields}) for fields in own]

    def path_of(self, block: int, field: str) -> str:
        """Where a setting of a block stands in the recipe."""
        if self.views is not None and field in self.views[block].model_fields_set:
            return f"views.{block}.{field}"
        return field


class SimCLRAugmentation(ImageAugmentation):
    """SimCLR's augmentation (Chen et al. 2020, appendix A) with a block of settings per view.

    Jitter is torchvision's: multiplicative, hue in HSV, the four operations in a random order.
    Each operation draws under its own name and each view under its own stream, so that a setting
    never changes what another operation or view draws.
    """

    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__(config)
        self._settings = [block for block in config.blocks() for _ in range(block.count)]

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return tuple(ViewSpec(settings.size, settings.role) for settings in self._settings)

    @classmethod
    def problems(cls, config: SimCLRConfig, facts: RunFacts) -> Iterable[tuple[str, str]]:
        found: dict[str, str] = {}  # a setting that several views share is reported once
        for block, settings in enumerate(config.blocks()):
            for field, message in _problems_of_view(settings, facts.channels):
                found.setdefault(config.path_of(block, field), message)
        return found.items()

    @classmethod
    def warnings(cls, config: SimCLRConfig, facts: RunFacts) -> Iterable[tuple[str, str]]:
        blurred = {
            config.path_of(block, "blur"): settings.size
            for block, settings in enumerate(config.blocks())
            if settings.blur_rate > 0.0 and settings.size <= _SHARP_SIZE
        }
        for path, size in blurred.items():
            yield (
                path,
                f"views of {size} px are blurred, which recipes for images of 32 px leave out "
                "(Chen et al. 2020, B.9); set blur: false",
            )

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        return [
            _draw_view(settings, random.substream("view", view), sizes)
            for view, settings in enumerate(self._settings)
        ]

    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        settings = self._settings[view]
        return Geometry(params["box"], params["flip"], settings.size, settings.interpolation)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        settings = self._settings[view]
        if settings.rotation_rate > 0.0:
            images = select_rows(params["rotate"], images, rotate, params["degrees"])
        gray = params["grayscale"] if settings.grayscale_probability > 0.0 else None
        if strengths := settings.strengths:
            factors = {name: params[name] for name in strengths}
            images = color_jitter(images, params["jitter"], params["jitter_order"], factors, gray)
        elif gray is not None:
            images = select_rows(gray, images, grayscale)
        if settings.blur_rate > 0.0:
            kernel = settings.blur_kernel_size
            images = select_rows(
                params["blur"],
                images,
                lambda part, sigma: gaussian_blur(part, sigma, kernel),
                params["sigma"],
            )
        if settings.solarize_probability > 0.0:
            threshold = settings.solarize_threshold
            images = select_rows(params["solarize"], images, lambda part: solarize(part, threshold))
        return images


def _problems_of_view(settings: ViewSettings, channels: int) -> Iterator[tuple[str, str]]:
    """(field, reason) for what cannot be done to images of so many channels."""
    if channels != 3:
        needs = {name: settings.strengths.get(name, 0.0) for name in ("saturation", "hue")}
        needs["grayscale_probability"] = settings.grayscale_probability
        reason = f"needs RGB images and these have {channels} channel(s)"
        yield from ((name, f"{reason}: set {name}: 0") for name, on in needs.items() if on > 0.0)
    kernel, most = settings.blur_kernel_size, 2 * settings.size - 1
    if settings.blur_rate > 0.0 and kernel > most:
        fits = f"set at most {most}, or blur: false"
        yield "blur_kernel", f"{kernel} does not fit a view of {settings.size} pixels: {fits}"


_WORDS = {
    **{"crop_area": 10, "crop_ratio": 10, "crop_top": 1, "crop_left": 1, "flip": 1},
    **{"rotate": 1, "degrees": 1, "jitter": 1, "jitter_order": 4},
    **{"brightness": 1, "contrast": 1, "saturation": 1, "hue": 1, "grayscale": 1},
    **{"blur": 1, "sigma": 1, "solarize": 1},
}
"""name -> random words that a sample needs; computed together, which is cheaper than one by one."""


def _draw_view(settings: ViewSettings, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
    """The parameters of one view: each tensor has one row per sample."""

    random = random.prepare(_WORDS)

    def happens(name: str, probability: float) -> Tensor:
        return random.uniform(name, 1)[:, 0] < probability

    def between(name: str, low: float, high: float) -> Tensor:
        return random.uniform(name, 1, low, high)[:, 0]

    params = {
        "box": random_resized_crop_boxes(random, sizes, settings.crop_scale, settings.crop_ratio),
        "flip": happens("flip", settings.flip),
    }
    if settings.rotation_rate > 0.0:
        params["rotate"] = happens("rotate", settings.rotation_rate)
        params["degrees"] = between(
            "degrees", -settings.rotation_degrees, settings.rotation_degrees
        )
    if strengths := settings.strengths:
        params["jitter"] = happens("jitter", settings.jitter_probability)
        params["jitter_order"] = random.permutation("jitter_order", 4)
        for name, strength in strengths.items():
            low = -strength if name == "hue" else max(0.0, 1.0 - strength)
            high = strength if name == "hue" else 1.0 + strength
            params[name] = between(name, low, high)
    if settings.grayscale_probability > 0.0:
        params["grayscale"] = happens("grayscale", settings.grayscale_probability)
    if settings.blur_rate > 0.0:
        params["blur"] = happens("blur", settings.blur_rate)
        params["sigma"] = between("sigma", *settings.blur_sigma)
    if settings.solarize_probability > 0.0:
        params["solarize"] = happens("solarize", settings.solarize_probability)
    return params
