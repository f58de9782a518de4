"""An evaluator on the bench: features whose classes are known, and small networks with images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from sslkit.api import (
    AugmentedViews,
    Evaluation,
    Evaluator,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    OwnDataEvaluator,
    OwnDataInput,
    PixelInput,
    RunFacts,
    SubjectName,
)
from sslkit.data.evaluation_images import StoredImages
from sslkit.evaluation.collector import as_one
from sslkit.evaluation.features import encoder_state
from sslkit.evaluation.isolation import isolated
from sslkit.experiment.build import Experiment
from sslkit.nn.modes import eval_mode
from sslkit.randomness import seeded

from .any_facts import FACTS, FactsLaws
from .laws import LawBrokenError
from .small_runs import SmallRuns, copied, other_bits

CLASSES, TRAIN, TEST, WIDTH = 4, 480, 600, 64
_SEED = 0
_KEY = "check"


@dataclass
class Measured:
    """What an evaluator found, and what it did to networks meanwhile."""

    found: Evaluation = field(default_factory=Evaluation)
    in_training_mode: list[str] = field(default_factory=list)
    """Modules that it sent something through in training mode, or left in it."""
    changed: list[str] = field(default_factory=list)
    """Parameters and buffers that have other bits."""


class Views(AugmentedViews):
    """Two views of each training image, near each other."""

    def __init__(self, width: int) -> None:
        self._rows = torch.randn(TRAIN, width, generator=torch.Generator().manual_seed(5))

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1)
        rows = self._rows[:num]
        first, second = (rows + 0.1 * torch.randn(rows.shape, generator=draw) for _ in range(2))
        return first, second


class EvaluatorBench(FactsLaws):
    """What the laws of evaluators share."""

    kind = "evaluator"

    def made(self) -> Evaluator:
        evaluator: Evaluator = self.subject.slot.build()
        return evaluator

    @property
    def requires_labels(self) -> bool:
        """Whether it measures labelled images alone."""
        return bool(self.subject.slot.cls.requires_labels)

    # --- Features ---------------------------------------------------------------------------------

    def on_bank(
        self,
        bank: FeatureBank,
        *,
        evaluator: Evaluator | None = None,
        subject: SubjectName = "trained",
    ) -> Measured:
        """What the parts of it that measure features find in a bank. Raises SkipTest where it has
        none."""
        parts = [p for p in (evaluator or self.made()).parts() if isinstance(p, FeatureEvaluator)]
        if subject == "pixels":
            parts = [part for part in parts if "pixels" in part.baselines]
        if not parts:
            raise SkipTest("it measures no features")
        deepest = max(part.projection_layer for part in parts)
        layers = [] if subject == "pixels" else projection(bank.train.shape[1], deepest)
        given = FeatureInput(subject, bank, _SEED, layers, Views(bank.train.shape[1]))
        return measured(parts, given, nn.ModuleList(layers))

    # --- Networks ---------------------------------------------------------------------------------

    def on_networks(self, evaluator: Evaluator | None = None) -> Measured:
        """What its parts that take an encoder find, on images of the run and on data of their
        own. Raises SkipTest where it has none."""
        kinds = (ImageEvaluator, OwnDataEvaluator)
        parts = [p for p in (evaluator or self.made()).parts() if isinstance(p, kinds)]
        if not parts:
            raise SkipTest("it measures features alone")
        method = copy.deepcopy(self.experiment.method)
        encoder, layers = method.encoder, tuple(method.projection_layers)
        given = {
            ImageEvaluator: ImageInput("trained", encoder, self.images, _SEED, layers),
            OwnDataEvaluator: OwnDataInput("trained", encoder, _SEED, self.images.device),
        }
        networks = nn.ModuleList([encoder, *layers])
        inputs = [next(v for k, v in given.items() if isinstance(part, k)) for part in parts]
        return measured(parts, inputs, networks)

    def on_raw_samples(self) -> Measured:
        """What it finds in raw samples of data of its own. Raises SkipTest."""
        parts = [p for p in self.made().parts() if isinstance(p, OwnDataEvaluator)]
        parts = [part for part in parts if "pixels" in part.baselines]
        if not parts:
            raise SkipTest("it measures no raw samples of its own")
        given = PixelInput(_SEED, self.images.device)
        with isolated(_SEED, _KEY):
            return Measured(as_one([checked(part, part.evaluate_pixels(given)) for part in parts]))

    @cached_property
    def experiment(self) -> Experiment:
        """A small run, for its encoder and its images."""
        return SmallRuns(self.subject).build()

    @cached_property
    def images(self) -> StoredImages:
        """Those of the run."""
        experiment = self.experiment
        return StoredImages(
            experiment.stores,
            experiment.method.encoder.preparation,
            experiment.compute,
            seed=_SEED,
            augmentation=experiment.recipe.augmentation.build(),
        )

    def refused(self, bank: FeatureBank) -> str | None:
        """Why a run on data of this size would be refused before its first step."""
        train = bank.train_labels[bank.train_labels >= 0]
        sizes = tuple(int(n) for n in train.bincount() if n) if len(train) else ()
        facts = replace(
            FACTS["usual data"], num_images=len(bank.train), num_test_images=len(bank.test),
            class_sizes=sizes, num_classes=bank.num_classes or None,
            test_has_labels=bool((bank.test_labels >= 0).any()),
        )  # fmt: skip
        return _first_problem(self.subject.slot.cls, self.subject.slot.config, facts)


def _first_problem(cls: Any, config: Any, facts: RunFacts) -> str | None:
    return next((message for _, message in cls.problems(config, facts)), None)


def measured(parts: Sequence[Any], given: Any, networks: nn.Module) -> Measured:
    """What the parts find, as the host calls them. given: one input, or one for each part."""
    inputs = given if isinstance(given, list) else [given] * len(parts)
    seen, before = Measured(), copied(encoder_state(networks))
    found = []
    with eval_mode(networks), _watched_modes(networks, seen.in_training_mode):
        for part, each in zip(parts, inputs, strict=True):
            with isolated(_SEED, _KEY):
                found.append(checked(part, part.evaluate(each)))
        seen.in_training_mode += [n or "it" for n, m in networks.named_modules() if m.training]
    seen.changed = other_bits(before, encoder_state(networks))
    seen.found = as_one(found)
    return seen


def checked(part: Evaluator, found: object) -> Evaluation:
    """What a part found. Raises LawBrokenError where that is no Evaluation."""
    if not isinstance(found, Evaluation):
        raise LawBrokenError(f"{type(part).__name__} gave {type(found).__name__}, no Evaluation")
    return found


@contextmanager
def _watched_modes(networks: nn.Module, noted: list[str]) -> Iterator[None]:
    """Notes modules, not copies of them, that run in training mode."""
    names = {id(module): name or "the network" for name, module in networks.named_modules()}

    def note(module: nn.Module, inputs: object) -> None:
        if module.training and id(module) in names:
            noted.append(names[id(module)])

    handles = [module.register_forward_pre_hook(note) for module in networks.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- Banks ----------------------------------------------------------------------------------------


def classes_apart(*, noise: float = 0.3, width: int = WIDTH) -> FeatureBank:
    """Features around the corner of a cube that each class has. noise: around it, in half sides."""
    draw = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2, (CLASSES, width), generator=draw) * 2.0 - 1.0

    def split(rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(rows) % CLASSES
        return corners[labels] + noise * torch.randn(rows, width, generator=draw), labels

    (rows, labels), (test, test_labels) = split(TRAIN), split(TEST)
    return FeatureBank(rows, test, labels, test_labels, _NAMES)


def chance() -> FeatureBank:
    """Features that know nothing of their labels."""
    draw, bank = torch.Generator().manual_seed(2), classes_apart()
    train, test = (torch.randn(x.shape, generator=draw) for x in (bank.train, bank.test))
    return replace(bank, train=train, test=test)


def usual() -> FeatureBank:
    """Features whose classes overlap."""
    return classes_apart(noise=6.0)


def selected(bank: FeatureBank, train: Tensor, test: Tensor) -> FeatureBank:
    """The bank with these rows."""
    return replace(
        bank,
        train=bank.train[train],
        train_labels=bank.train_labels[train],
        test=bank.test[test],
        test_labels=bank.test_labels[test],
    )


def unlabelled(bank: FeatureBank) -> FeatureBank:
    """The bank of images without labels."""
    train, test = (torch.full_like(x, -1) for x in (bank.train_labels, bank.test_labels))
    return FeatureBank(bank.train, bank.test, train, test)


def projection(width: int, count: int) -> list[nn.Module]:
    """So many layers of a projection head, with what behaves otherwise in training mode."""
    with seeded(0, "projection"):
        widths = [width] + [width] * max(count, 2)
        return [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.5))
            for a, b in pairwise(widths)
        ]


_NAMES = tuple(f"class {number}" for number in range(CLASSES))
