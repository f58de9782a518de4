"""Augmentations with one fault each, as people make them, and a sound one that they differ from."""

from __future__ import annotations

import itertools
import random as python_random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sslkit.api import ComponentConfig, Geometry, ImageAugmentation, Params, RunFacts, ViewSpec
from sslkit.nn.image import random_resized_crop_boxes
from sslkit.randomness import SampleRandom


class Sound(ImageAugmentation):
    """A crop, a flip, another brightness, and the quarter that the crop lies in as a target:
    nothing is wrong with it."""

    class Config(ComponentConfig):
        size: int = 16
        """Side of the view, pixels."""

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec(self.config.size), ViewSpec(self.config.size))

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        return [self.draw_view(random.substream("view", view), sizes) for view in range(2)]

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        return {
            "box": random_resized_crop_boxes(random, sizes),
            "flip": random.uniform("flip", 1)[:, 0] < 0.5,
            "brightness": random.uniform("brightness", 1, 0.5, 1.0)[:, 0],
        }

    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        return Geometry(params["box"], params["flip"], self.config.size)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return images * params["brightness"][:, None, None, None]

    def targets(self, params: list[Params]) -> Mapping[str, Tensor]:
        return {"flipped": torch.stack([view["flip"] for view in params], dim=1)}


class GrowingViews(Sound):
    """Makes another list of views at every call."""

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        self.made = getattr(self, "made", 0) + 1
        return (ViewSpec(self.config.size, f"view {self.made}"),) * 2


class OneNumber(Sound):
    """Gives one brightness for all samples."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        return {**super().draw_view(random, sizes), "gain": torch.ones(())}


class GlobalRandomness(Sound):
    """Draws the brightness from torch's global generator."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        return {**drawn, "brightness": torch.rand(len(sizes))}


class GlobalWhenMade(Sound):
    """Draws noise while views are made, from Python's global generator."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return super().photometric(view, images, params) * python_random.uniform(0.9, 1.0)


class KeyedByPosition(Sound):
    """Draws by the position in the batch."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        place = SampleRandom(random.seed, random.stream, random.epoch, torch.arange(len(sizes)))
        return {**super().draw_view(random, sizes), "brightness": place.uniform("b", 1)[:, 0]}


class KeyedByBatch(Sound):
    """Draws one brightness for each batch, from its first sample."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        return {**drawn, "brightness": drawn["brightness"][:1].expand(len(sizes))}


class FirstSize(Sound):
    """Takes all images of a batch for as large as the first."""

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        return super().draw(random, sizes[:1].expand_as(sizes))


class StatefulDraw(Sound):
    """Draws from a generator of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.own = torch.Generator().manual_seed(0)

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        return {**drawn, "brightness": torch.rand(len(sizes), generator=self.own)}


class ReorderedTargets(Sound):
    """Gives targets in the order of the brightness."""

    def targets(self, params: list[Params]) -> Mapping[str, Tensor]:
        order = params[0]["brightness"].argsort()
        return {name: value[order] for name, value in super().targets(params).items()}


class TooBright(Sound):
    """Makes images brighter than 1."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return 2.0 * super().photometric(view, images, params)


class SmallerView(Sound):
    """Cuts a border away after the crop."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return super().photometric(view, images, params)[..., 1:-1, 1:-1]


class ColoursAlone(Sound):
    """Weights red, green and blue, and says nothing of images of other channels."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        weights = torch.tensor([0.9, 1.0, 0.8]).view(3, 1, 1)
        return super().photometric(view, images, params) * weights.to(images)


class SaysColoursAlone(ColoursAlone):
    """Says so: nothing is wrong with it."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if facts.channels != 3:
            yield "name", f"takes images of 3 channels, and these have {facts.channels}"


class ToBytes(Sound):
    """Makes views of whole numbers."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return super().photometric(view, images, params).round().to(torch.uint8)


class UsesTheLastDraw(Sound):
    """Makes views with what was drawn last."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        self.last = float(drawn["brightness"][0])
        return drawn

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return images * self.last


class CountsViews(Sound):
    """Makes darker views the more it has made."""

    count: Iterator[int]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.count = itertools.count(1)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return super().photometric(view, images, params) / next(self.count)


class SortsRows(Sound):
    """Works on dark and on bright images apart, and joins them in that order."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        made = super().photometric(view, images, params)
        dark = params["brightness"] < 0.75
        return torch.cat([made[dark], made[~dark]])


class TurnsRows(Sound):
    """Returns the views from the last to the first."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return super().photometric(view, images, params).flip(0)


class OverTheBatch(Sound):
    """Stretches values by the brightest of the batch."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        made = super().photometric(view, images, params)
        return made / made.amax().clamp_min(1e-3)


class InPlace(Sound):
    """Changes the brightness of the images where they are."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        return images.mul_(params["brightness"][:, None, None, None])


class ChangesParameters(Sound):
    """Changes its parameters while a view is made."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        made = super().photometric(view, images, params)
        params["brightness"].sub_(0.1)
        return made


class OneBuffer(Sound):
    """Makes the views of all threads in one piece of memory."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.buffer = torch.empty(0)

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        if self.buffer.shape != images.shape:
            self.buffer = torch.empty_like(images)
        buffer = self.buffer
        buffer.copy_(images)
        for row, factor in enumerate(params["brightness"].tolist()):
            buffer[row] *= factor
        return buffer.clone()


class BeyondTheEdge(Sound):
    """Cuts squares, which leave images that are not."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        side = drawn["box"][:, 2:].amax(dim=1)
        box = torch.stack([drawn["box"][:, 0], drawn["box"][:, 1], side, side], dim=1)
        return {**drawn, "box": box}


class PartsOfPixels(Sound):
    """Cuts between pixels."""

    def draw_view(self, random: SampleRandom, sizes: Tensor) -> dict[str, Tensor]:
        drawn = super().draw_view(random, sizes)
        shift = 0.5 * (drawn["box"][:, 2:3] > 2)
        return {**drawn, "box": drawn["box"] + shift * torch.tensor([1.0, 0.0, -1.0, 0.0])}


class AnotherMake(Sound):
    """Makes views of images in memory without the crop."""

    def make(self, view: int, samples: Tensor, params: Params) -> Tensor:
        size = (self.config.size, self.config.size)
        small = torch.nn.functional.interpolate(samples.float() / 255.0, size)
        return self.photometric(view, small, params)


class OtherWhereCompiled(Sound):
    """Takes a short cut for compilers, which leaves the brightness out."""

    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        if torch.compiler.is_compiling():
            return images
        return super().photometric(view, images, params)


BROKEN: dict[type[ImageAugmentation], str] = {
    GrowingViews: "says-which-views-it-makes",
    OneNumber: "has-a-row-for-each-sample",
    GlobalRandomness: "no-global-random-numbers",
    GlobalWhenMade: "no-global-random-numbers",
    KeyedByPosition: "parameters-follow-from-the-key",
    KeyedByBatch: "parameters-follow-from-the-key",
    FirstSize: "parameters-follow-from-the-key",
    StatefulDraw: "parameters-follow-from-the-key",
    ReorderedTargets: "targets-follow-their-rows",
    TooBright: "views-are-as-announced",
    SmallerView: "views-are-as-announced",
    ToBytes: "views-are-as-announced",
    ColoursAlone: "views-are-as-announced",
    UsesTheLastDraw: "views-repeat",
    CountsViews: "views-repeat",
    SortsRows: "views-stay-at-their-rows",
    TurnsRows: "views-stay-at-their-rows",
    OverTheBatch: "views-stay-at-their-rows",
    InPlace: "what-it-is-given-is-left-alone",
    ChangesParameters: "what-it-is-given-is-left-alone",
    OneBuffer: "threads-make-the-same",
    BeyondTheEdge: "crops-lie-inside-the-image",
    PartsOfPixels: "crops-lie-inside-the-image",
    AnotherMake: "make-is-crop-and-photometric",
}
"""Class -> the one law that it breaks."""
