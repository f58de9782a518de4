"""An augmentation on the bench: built, given samples, and called as the loader calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.api import (
    Augmentation,
    ImageAugmentation,
    ImageReader,
    Params,
    RunFacts,
    SampleSpec,
    SplitReader,
)
from sslkit.data.cached_split import CachedSplit
from sslkit.data.views import view_maker
from sslkit.experiment.trials import ROWS
from sslkit.randomness import SampleRandom

from .any_facts import FactsLaws
from .laws import UntriedError
from .small_runs import distance
from .trial_samples import (
    USUAL,
    example,
    facts_in_recipe,
    facts_of,
    first_without_problems,
    problems_of,
)

IMAGE_SIZES = ((40, 52), (33, 17), (64, 64), (1, 9), (9, 1), (1, 1))
"""Height and width of images that views are made of."""
_FEW = 12
_CHANNELS = (1, 3, 4)
"""Grey images, images of colours, and those with one channel more, such as infrared."""


class AugmentationBench(FactsLaws):
    """What the laws of augmentations share."""

    kind = "augmentation"

    def build(self) -> Augmentation:
        """Another instance."""
        made: Augmentation = self.subject.slot.build()
        return made

    @cached_property
    def augmentation(self) -> Augmentation:
        """The one that is tried."""
        return self.build()

    @property
    def makes_images(self) -> bool:
        """Whether its views are images."""
        return isinstance(self.augmentation, ImageAugmentation)

    @cached_property
    def facts(self) -> RunFacts:
        """What is known of the samples: those of its recipe, or the kit's first that suit it."""
        if self.subject.has_recipe:
            return facts_in_recipe(self.subject)
        views = self.augmentation.views
        tried = (
            facts_of(sample, views)
            for sample, _ in USUAL
            if sample.is_image or not self.makes_images
        )
        return first_without_problems(self.subject, tried)

    @property
    def sample(self) -> SampleSpec:
        """What the samples are; the sides of images are free."""
        return self.facts.sample

    # --- What it is given -------------------------------------------------------------------------

    def keys(
        self, rows: slice | Tensor = slice(None), seed: int = 0, epoch: int = 0
    ) -> SampleRandom:
        """Randomness of ROWS samples, or of some of them."""
        indices = torch.arange(ROWS) * 7 + 3
        return SampleRandom(seed, "check", epoch, indices[rows])

    @cached_property
    def sizes(self) -> Tensor:
        """(ROWS, n) sides: images differ in theirs."""
        if self.makes_images:
            return torch.tensor(IMAGE_SIZES).repeat(ROWS // len(IMAGE_SIZES) + 1, 1)[:ROWS]
        return torch.tensor([self._sides]).expand(ROWS, -1)

    @property
    def _sides(self) -> tuple[int, ...]:
        return self.sample.sides or IMAGE_SIZES[0]

    def sizes_of(self, samples: Tensor) -> Tensor:
        """(rows, n) sides of samples of one shape."""
        sides = samples.shape[2:] if samples.ndim > 2 else samples.shape[1:]
        return torch.tensor([sides]).expand(len(samples), -1)

    def samples(self, stream: str = "samples") -> Tensor:
        """A few of one shape, in the type of the reader."""
        return self._samples_of(self._sides, stream)

    def _samples_of(self, sides: Sequence[int], stream: str = "samples") -> Tensor:
        shape = (self.sample.channels, *sides) if self.sample.channels else tuple(sides)
        return example((_FEW, *shape), self.sample.torch_dtype, stream)

    def odd_samples(self) -> Iterator[Tensor]:
        """Images of every size, black and white ones among them, and of other numbers of channels;
        other samples as they are."""
        if not self.sample.is_image:
            yield self.samples()
            return
        for sides in IMAGE_SIZES if self.makes_images else IMAGE_SIZES[:1]:
            images = self._samples_of(sides)
            images[:3], images[3:6] = 0, 255
            yield images
        for channels in self.other_channels:
            yield example((_FEW, channels, *IMAGE_SIZES[0]), self.sample.torch_dtype)

    @cached_property
    def other_channels(self) -> tuple[int, ...]:
        """Numbers of channels of images, beside those that it is tried on, against which `problems`
        has nothing."""
        if not self.sample.is_image or self.subject.has_recipe:
            return ()
        facts = [replace(self.facts, channels=n) for n in _CHANNELS if n != self.facts.channels]
        slot = self.subject.slot
        return tuple(each.channels for each in facts if not any(problems_of(slot, each)))

    def smooth_images(self) -> Tensor:
        """Images without edges, on which filters differ by rounding alone."""
        height, width = 48, 40
        rows = torch.linspace(0.2, 0.7, height)[:, None] + torch.linspace(0.0, 0.1, width)
        phase = torch.linspace(0.0, 0.1, _FEW)[:, None, None, None]
        images = (rows + phase).expand(_FEW, self.sample.channels, height, width)
        return (255.0 * images).round().to(torch.uint8)

    # --- How it is called -------------------------------------------------------------------------

    def draw(
        self, rows: slice | Tensor = slice(None), seed: int = 0, epoch: int = 0
    ) -> list[Params]:
        """The parameters of these samples."""
        return self.augmentation.draw(self.keys(rows, seed, epoch), self.sizes[rows].clone())

    def fitting(self, seed: int = 0) -> list[Params]:
        """The parameters of `samples`."""
        samples = self.samples()
        keys = self.keys(slice(len(samples)), seed)
        return self.augmentation.draw(keys, self.sizes_of(samples))

    def make(
        self, view: int, samples: Tensor, params: Params, by: Augmentation | None = None
    ) -> Tensor:
        """A view of a batch: of images, `photometric` of the crop. by: another instance."""
        augmentation = by or self.augmentation
        with torch.no_grad():
            return augmentation.make(view, samples.clone(), _kept(params))

    def views_of(self, samples: Tensor, drawn: Sequence[Params] | None = None) -> list[Tensor]:
        """All views of a batch. drawn: the parameters of its samples."""
        if drawn is None:
            keys = self.keys(slice(len(samples)))
            drawn = self.augmentation.draw(keys, self.sizes_of(samples))
        return [self.make(view, samples, params) for view, params in enumerate(drawn)]

    def calls(
        self, view: int, params: Params
    ) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Any]]]:
        """(name, what it is given, the function) of what works on samples."""
        augmentation = self.augmentation
        yield "make", self.samples(), lambda given: augmentation.make(view, given, params)
        if isinstance(augmentation, ImageAugmentation):
            shape = (_FEW, *augmentation.views[view].shape(self.sample.channels))
            cropped = example(shape, torch.float32)
            yield (
                "photometric",
                cropped,
                lambda given: augmentation.photometric(view, given, params),
            )

    def distance(self, one: Tensor, other: Tensor) -> float:
        """The largest difference of values; in parts of the largest where these are no images."""
        if self.makes_images and one.shape == other.shape:
            return float((one.double() - other.double()).abs().max())
        return distance(one, other)

    # --- With the engine --------------------------------------------------------------------------

    def through_the_engine(self, *, compiled: bool) -> Sequence[Tensor]:
        """The views of a batch, as a run makes them of samples in memory."""
        samples = self._samples_of(self._sides if not self.makes_images else (48, 48))
        reader = _given_reader(samples)
        store = CachedSplit(reader, max_corrupt_fraction=0.0, seed=0, num_threads=0)
        maker = view_maker(store, self.augmentation, torch.device("cpu"), compiled=compiled)
        with torch.no_grad():
            return maker.make(SampleRandom(0, "check", 0, torch.arange(len(samples)))).images

    def compiled_views(self) -> Sequence[Tensor]:
        """The same, compiled. Raises UntriedError where there is no compiler."""
        torch._dynamo.reset()
        try:
            torch.compile(lambda given: 2.0 * given + 1.0)(torch.ones(3))
        except Exception as error:
            raise UntriedError("torch.compile has no compiler here, such as g++") from error
        return self.through_the_engine(compiled=True)


def drawn_rows(params: Params, rows: slice | Tensor) -> dict[str, Tensor]:
    """The parameters of some samples."""
    return {name: value[rows] for name, value in params.items()}


def _kept(params: Params) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in params.items()}


class _Given(SplitReader):
    """Samples that are in memory."""

    def __init__(self, samples: NDArray[Any], spec: SampleSpec) -> None:
        self.samples, self._spec = samples, spec

    @property
    def sample(self) -> SampleSpec:
        return self._spec

    def __len__(self) -> int:
        assert self.samples is not None
        return len(self.samples)

    def read(self, index: int) -> NDArray[Any]:
        assert self.samples is not None
        found: NDArray[Any] = self.samples[index]
        return found

    def fingerprint(self) -> str:
        return "given"


class _GivenImages(_Given, ImageReader):
    def __init__(self, samples: NDArray[Any], spec: SampleSpec) -> None:
        super().__init__(samples, spec)
        self.channels = samples.shape[1]
        self.image_size = (samples.shape[2], samples.shape[3])

    def read(self, index: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = super().read(index).transpose(1, 2, 0)
        return found


def _given_reader(samples: Tensor) -> SplitReader:
    values = samples.numpy()
    spec = SampleSpec(values.shape[1:], values.dtype.name)
    return _GivenImages(values, spec) if spec.is_image else _Given(values, spec)
