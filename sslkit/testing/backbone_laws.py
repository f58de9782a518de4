"""What a backbone promises."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from sslkit import installed_components
from sslkit.api import (
    Backbone,
    FeatureStage,
    NoFeatureMapsError,
    Preprocess,
    RunFacts,
    Slot,
)
from sslkit.engine.contract import describe
from sslkit.experiment.networks import (
    build_backbone,
    input_shape,
    measured_dtype,
    measured_shape,
    without_weights,
)
from sslkit.nn.modes import frozen
from sslkit.randomness import seeded

from .laws import LawBrokenError, law, refuse
from .network_laws import CLOSE, STILL, WIDTH, NetworkLaws
from .small_runs import distance, listed
from .trial_samples import (
    example,
    facts_in_recipe,
    first_without_problems,
    problems_of,
    usual_facts,
)


class BackboneLaws(NetworkLaws):
    """The laws of `Backbone`."""

    kind = "backbone"

    @cached_property
    def facts(self) -> RunFacts:
        """Facts of the samples that it is tried on: of its recipe, or the kit's first that suit."""
        if self.subject.has_recipe:
            return facts_in_recipe(self.subject)
        tried = usual_facts(images=self.slot.cls.takes_images)
        if self.slot.cls.takes_images:
            return first_without_problems(self.subject, tried)
        return first_without_problems(self.subject, filter(self._takes, tried))

    def _takes(self, facts: RunFacts) -> bool:
        """Whether a network that takes no images works on these."""
        try:
            network = build_backbone(self.bare, input_shape(facts))
            with frozen(network):
                network(example((2, *input_shape(facts)), self._dtype(facts)))
        except Exception:  # whatever torch says of other shapes
            return False
        return True

    @property
    def slot(self) -> Slot[Backbone]:
        """The backbone and its configuration."""
        return self.subject.slot

    @property
    def bare(self) -> Slot[Backbone]:
        """It without starting weights."""
        return without_weights(self.slot)

    def _dtype(self, facts: RunFacts) -> torch.dtype:
        return measured_dtype(facts.sample)

    def make(self, stream: str = "initialisation") -> Backbone:
        shape = input_shape(self.facts)
        with seeded(0, stream):
            return build_backbone(self.bare, shape)

    def samples(self, rows: int = 8, stream: str = "samples") -> Tensor:
        return example((rows, *input_shape(self.facts)), self._dtype(self.facts), stream)

    def width(self, network: Any) -> tuple[str, object]:
        return "num_features", getattr(network, "num_features", None)

    # --- Images -----------------------------------------------------------------------------------

    @law(
        "set self.preprocess in the constructor: size and resize in pixels, mean and std with one "
        "value, or one for each channel",
        needs=WIDTH,
    )
    def says_how_images_are_prepared(self) -> str:
        """`preprocess` says how images are resized, cropped and normalised for it, and it takes
        images of that size."""
        if not self.slot.cls.takes_images:
            raise SkipTest("it takes no images")
        network = self.make()
        found, channels = getattr(network, "preprocess", None), self.facts.channels
        if not isinstance(found, Preprocess):
            raise LawBrokenError(f"preprocess is {found!r}")
        refuse(not 0 < found.size <= found.resize, f"size {found.size}, resize {found.resize}")
        for name, values in (("mean", found.mean), ("std", found.std)):
            odd = len(values) not in (1, channels) or not all(map(math.isfinite, values))
            refuse(odd, f"{name} is {values} for {channels} channels")
        refuse(min(found.std) <= 0.0, f"std is {found.std}")
        shape = measured_shape(network, self.facts.sample)
        self.refuse_other_width(network, example((3, *shape), torch.float32))
        return f"{found.size} px"

    @law(
        "take `channels` of the constructor for the first layer, or say in `problems` which ones "
        "it does not take",
        needs=WIDTH,
    )
    def takes_images_of_other_channels(self) -> str:
        """It works on images of one and of three channels, or `problems` says why not."""
        if not self.slot.cls.takes_images:
            raise SkipTest("it takes no images")
        taken = []
        for channels in (1, 3):
            facts = dataclasses.replace(self.facts, channels=channels)
            if any(problems_of(self.slot, facts)):
                continue
            shape = (channels, *input_shape(self.facts)[1:])
            network = build_backbone(self.bare, shape)
            self.refuse_other_width(network, example((4, *shape), torch.float32))
            taken.append(str(channels))
        return f"takes {' and '.join(taken)}" if taken else ""

    @law("use reshape and flatten, and no view on what may lie otherwise in memory", needs=STILL)
    def memory_layout_changes_nothing(self) -> None:
        """Images that lie in memory with channels last have the same features."""
        images = self.samples()
        if images.ndim != 4:
            raise SkipTest("its samples have no such layout")
        network = self.used()
        found = self.evaluated(
            network.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
        far = distance(found, self.evaluated(network, images))
        refuse(not far <= CLOSE, f"features are {far:.2g} away")

    # --- Parts ------------------------------------------------------------------------------------

    @law(
        "return every parameter of named_parameters() with its name, once, from the input to the "
        "output; or leave depth_groups out",
        needs=WIDTH,
    )
    def depth_groups_hold_every_parameter(self) -> str:
        """`depth_groups` names each parameter once, in groups that are not empty."""
        network = self.make()
        groups = [list(group) for group in network.depth_groups()]
        empty = [number for number, group in enumerate(groups) if not group]
        refuse(empty, f"of {len(groups)} groups number {empty} is empty")
        given = [(name, id(p)) for group in groups for name, p in group]
        wanted = [(name, id(p)) for name, p in network.named_parameters()]
        twice = sorted({name for name, _ in given if [n for n, _ in given].count(name) > 1})
        refuse(twice, f"{listed(twice)} more than once")
        missing = [name for name, each in wanted if (name, each) not in set(given)]
        refuse(missing, f"without {listed(missing)}")
        refuse(len(given) > len(wanted), "with what are none of its parameters")
        return f"{len(groups)} groups"

    @law(
        "state in feature_stages the channels and the stride of what feature_maps gives; where it "
        "gives none, leave both out",
        needs=STILL,
    )
    def feature_maps_are_as_stated(self) -> str:
        """`feature_maps` gives for each of `feature_stages` finite (B, channels, H, W), where H and
        W are the sides of the image in strides; without stages it raises NoFeatureMapsError."""
        network, stages = self.used(), self.make().feature_stages
        if not stages:
            with frozen(network):
                try:
                    network.feature_maps(self.samples(2), [-1])
                except NoFeatureMapsError:
                    raise SkipTest("it has no feature maps") from None
            raise LawBrokenError("feature_stages is empty, and feature_maps gives maps")
        names = [stage.name for stage in stages]
        refuse(len(set(names)) < len(names), f"stages of one name: {listed(names)}")
        images = self.samples(2)
        places = list(range(len(stages)))
        with frozen(network):
            maps = network.feature_maps(images, places)
            last = network.feature_maps(images, [-1])[0]
        refuse(len(maps) != len(stages), f"{len(maps)} maps of {len(stages)} stages")
        for stage, found in zip(stages, maps, strict=True):
            _refuse_other_map(stage, images, found)
        refuse(distance(last, maps[-1]) > CLOSE, "stage -1 is not the last one")
        return f"{len(stages)} stages{self._maps_of_other_sizes(network)}"

    def _maps_of_other_sizes(self, network: Backbone) -> str:
        """What it gives of a larger image that is no square, where it takes one, is looked at too;
        says so."""
        channels, side, _ = input_shape(self.facts)
        images = example((2, channels, 2 * side, 3 * side), torch.float32)
        places = list(range(len(network.feature_stages)))
        try:
            with frozen(network):
                maps = network.feature_maps(images, places)
        except Exception:  # it takes no others, as many transformers
            return ""
        for stage, found in zip(network.feature_stages, maps, strict=True):
            _refuse_other_map(stage, images, found)
        return ", of images of any size"

    @law(
        "return None for a name that `published` does not know, and a line or None from `label`",
        needs=WIDTH,
    )
    def what_it_is_called_is_text(self) -> str | None:
        """`label` is a line of text or None; `published` gives None for a name that nobody has, and
        for one of `published_names` fields that are valid."""
        cls, config = self.slot.cls, self.slot.config
        label = cls.label(config)
        line = label is None or (isinstance(label, str) and label and "\n" not in label)
        refuse(not line, f"label gave {label!r}")
        given = cls.published("no model has this name")
        refuse(given is not None, f"published gave {given!r} for a name that nobody has")
        name = next(iter(cls.published_names()), None)
        if name is not None:
            fields = cls.published(name)
            refuse(fields is None, f"published knows nothing of {name!r}, one of published_names")
            cls.Config.model_validate(fields, context={"registry": installed_components()})
        return label


def _refuse_other_map(stage: FeatureStage, images: Tensor, found: Any) -> None:
    """Raises LawBrokenError where a map is not as its stage says."""
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise LawBrokenError(f"stage {stage.name}: {describe(found)}")
    refuse(
        found.shape[:2] != (len(images), stage.channels),
        f"stage {stage.name} states {stage.channels} channels and gave {describe(found)}",
    )
    for side, given in zip(images.shape[-2:], found.shape[-2:], strict=True):
        fits = given in (side // stage.stride, math.ceil(side / stage.stride))
        refuse(
            not fits,
            f"stage {stage.name} states stride {stage.stride} and made {given} of {side} px",
        )
    refuse(not bool(found.isfinite().all()), f"stage {stage.name} has values that are not finite")
