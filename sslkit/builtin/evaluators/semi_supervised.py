"""Accuracy from 1 % and 10 % of the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from sslkit.api import (
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    ImageScores,
    RunFacts,
)
from sslkit.nn.standardised import Standardised
from sslkit.nn.stratified import balanced_subset

from .classification import at_layer
from .linear_solvers import LBFGS, Folds, choose_and_fit, standardised_splits
from .supervised_training import DivergedError, FineTuningConfig, fine_tune

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Way = Literal["probe", "finetune"]


class SemiSupervised(Evaluator):
    """Accuracy on the test split from a few per cent of the labels, the other images being used
    without: as many labelled images of each class as of any other, drawn by the seed, the same for
    every subject, so that differences are paired. Two ways:

    - `probe`: logistic regression on frozen features, the penalty chosen by cross-validation on
      the chosen labels. Raw pixels are a baseline of it.
    - `finetune`: a copy of the encoder and a classifier are trained on the chosen images, as
      `finetune` does on all; the last epoch counts. The untrained encoder, which is then trained
      from scratch, is the only baseline.

    Chen et al. 2020 (arXiv:2002.05709, B.5) fine-tune for 60 epochs with 1 % and 30 with 10 %;
    SimCLR v2 (arXiv:2006.10029) starts from the first of three layers of the projection head
    (`from_layer: 1`).

    Metrics, each the mean over the draws, which are kept for intervals: `top1_<p>pct_<way>`, such
    as `top1_1pct_probe`; for the probe also `selection_top1_...`, the accuracy on held-out
    labels, and `log10_l2_...` of the penalty chosen; for fine-tuning `train_loss_...`. From a layer
    of the projection head the names end in `_projector_<layer>`."""

    class Config(FineTuningConfig, EvaluatorConfig):
        fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.01, 0.1)
        """Parts of the labels that are used. One that has fewer images than there are classes is
        left out, and the report says so."""
        ways: Annotated[tuple[Way, ...], Field(min_length=1)] = ("probe", "finetune")
        """How the labels are used: `probe`, `finetune`."""
        draws: PositiveInt = 3
        """Independent draws of the labelled images; from 3 on intervals are over them too, and not
        over test images alone."""
        from_layer: NonNegativeInt = 0
        """0: the features of the encoder; k: the output of layer k of the projection head, whose
        first layers are fine-tuned too."""
        epochs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (60, 30)
        """`finetune`: passes over the chosen images, one number for each fraction."""
        l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4,
        )  # fmt: skip
        """`probe`: penalties to choose from, as for `linear`."""
        selection_folds: Folds = 5
        """`probe`: parts that the chosen labels are cut into to choose `l2`, as for `linear`."""
        max_iterations: PositiveInt = 500
        """`probe`: L-BFGS iterations for each penalty, at most."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        for name in ("fractions", "ways"):
            values = getattr(config, name)
            if len(set(values)) < len(values):
                yield name, f"{list(values)} names one twice; name each once"
        if "finetune" in config.ways and len(config.epochs) != len(config.fractions):
            yield (
                "epochs",
                f"{len(config.epochs)} numbers for {len(config.fractions)} fractions; give one for "
                "each",
            )
        if not facts.sample.is_image:
            yield "", f"fine-tunes on images, and the samples are {facts.sample}; leave it out"
        yield from config.problems_with_views()

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from config.warnings_of_views(facts)
        for fraction in config.fractions:
            classes, labelled = facts.classes_present, facts.num_labelled
            labels = round(fraction * labelled)
            if classes and labels < classes:
                yield (
                    "fractions",
                    f"{fraction:.3g} of {labelled:,} labels are {labels}, fewer than one of each "
                    f"of {classes} classes, and will be left out; take at least "
                    f"{classes / labelled:.2g}",
                )
        if "finetune" in config.ways and config.every_epochs is not None:
            yield (
                "every_epochs",
                f"each time {config.draws} draws of fine-tuning; leave it out or set ways: [probe]",
            )
        share = 2 * _images(config, facts) / (facts.total_steps * facts.batch_size)
        if share > 1.0:
            yield (
                "draws",
                f"fine-tuning {config.draws} draws of the labels, trained and untrained, sees "
                f"{share:.1f} times the images of the training itself; lower draws or epochs",
            )

    @classmethod
    def plan_facts(cls, config: Any, facts: RunFacts) -> Mapping[str, str | int | float]:
        if "finetune" not in config.ways:
            return {}
        images = _images(config, facts)
        return {
            "semi-supervised fine-tuning": f"{config.draws} draws, {images:,} images, twice "
            "(untrained too)"
        }

    @classmethod
    def facts_inside(cls, config: Any, facts: RunFacts) -> RunFacts:
        num, epochs = round(max(config.fractions) * facts.num_labelled), min(config.epochs)
        inside: RunFacts = config.inner_facts(facts, num, epochs)
        return inside

    def parts(self) -> Sequence[Evaluator]:
        """One for each way."""
        ways: dict[Way, type[_Way]] = {"probe": _Probe, "finetune": _FineTuning}
        return [ways[way](self.config) for way in self.config.ways]


@dataclass
class _Draws:
    """What one way found from several draws of as many labels."""

    correct: list[Tensor] = field(default_factory=list)
    """(M,) float64 for each draw."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> value of each draw."""
    notes: list[str] = field(default_factory=list)

    def add(self, correct: Tensor, others: Mapping[str, float]) -> None:
        """The next draw. correct: (M,) bool."""
        self.correct.append(correct.cpu().double())
        for name, value in {"top1": float(self.correct[-1].mean()), **others}.items():
            self.values.setdefault(name, []).append(value)


_Measure = Callable[[Sequence[Tensor], int], _Draws]
"""Measures every draw of a fraction: of each draw, the labelled training images; which fraction."""


@dataclass
class _Found:
    """What all ways found."""

    draws: dict[str, Sequence[float]] = field(default_factory=dict)
    per_image: dict[str, ImageScores] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, draws: _Draws, ending: str) -> None:
        """The metrics of one way and fraction, and what they end in."""
        self.draws |= {name + ending: values for name, values in draws.values.items()}
        if draws.correct:
            scores = ImageScores(torch.stack(draws.correct).mean(dim=0))
            self.per_image["top1" + ending] = scores
        self.notes += draws.notes

    def evaluation(self) -> Evaluation:
        """Means over draws."""
        if not self.draws:
            return Evaluation(skipped="; ".join(self.notes), notes=self.notes)
        means = {name: sum(values) / len(values) for name, values in self.draws.items()}
        return Evaluation(means, self.draws, self.per_image, notes=self.notes)


class _Way(Evaluator):
    """One way to use the labels, for every fraction of them."""

    name: ClassVar[Way]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection_layer = config.from_layer
        if config.from_layer:
            self.baselines = ("untrained",)

    def _measure(self, labels: Tensor, seed: int, way: _Measure) -> Evaluation:
        """labels: (N,) of the labelled training images, on the CPU."""
        config, found = self.config, _Found()
        classes = int((labels.bincount() > 0).sum())
        for place, fraction in enumerate(config.fractions):
            total = round(fraction * len(labels))
            if total < classes:
                found.notes.append(
                    f"{total} of {len(labels)} labels are fewer than {classes} classes; left out"
                )
                continue
            chosen = [balanced_subset(labels, total, seed, draw) for draw in range(config.draws)]
            ending = at_layer(f"_{100 * fraction:g}pct_{self.name}", config.from_layer)
            found.add(way(chosen, place), ending)
        return found.evaluation()


class _Probe(_Way, FeatureEvaluator):
    """Logistic regression on the features, from some of the labels."""

    name = "probe"

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank = given.projected(self.config.from_layer).bank
        train, test = standardised_splits(bank)

        def draws(chosen: Sequence[Tensor], place: int) -> _Draws:
            return self._draws(train, test, bank.num_classes, given.seed, chosen)

        return self._measure(bank.train_labels.cpu(), given.seed, draws)

    def _draws(
        self,
        train: Standardised,
        test: Standardised,
        num_classes: int,
        seed: int,
        chosen: Sequence[Tensor],
    ) -> _Draws:
        """Every draw. chosen: of each draw, the labelled training images."""
        found, folds = _Draws(), self.config.selection_folds
        solver = LBFGS(self.config.l2, self.config.max_iterations)
        for rows in chosen:
            best = choose_and_fit(train.select(rows), num_classes, solver, folds, seed)
            if best is None:
                reason = f"{len(rows)} labels are one of a class: none is left to choose l2 with"
                return _Draws(notes=[reason])
            found.add(
                best.predictions(test) == test.labels,
                {"selection_top1": best.selection_top1, "log10_l2": log10(best.candidate["l2"])},
            )
            found.notes += [note for note in best.notes if note not in found.notes]
        return found


class _FineTuning(_Way, ImageEvaluator):
    """Fine-tuning of a copy of the encoder on some of the labelled images."""

    name = "finetune"

    def evaluate(self, given: ImageInput) -> Evaluation:
        labels, rows = given.images.labels("train"), given.images.labelled("train")

        def draws(chosen: Sequence[Tensor], place: int) -> _Draws:
            positions = [rows[each] for each in chosen]
            return self._draws(given, positions, self.config.epochs[place])

        return self._measure(labels[rows], given.seed, draws)

    def _draws(self, given: ImageInput, chosen: Sequence[Tensor], epochs: int) -> _Draws:
        """Every draw; nothing but the reason where one diverged."""
        found, config = _Draws(), self.config
        for rows in chosen:
            try:
                tuned = fine_tune(given, config, rows, epochs=epochs, layer=config.from_layer)
            except DivergedError as error:
                return _Draws(notes=[f"fine-tuning with {len(rows)} labels: {error}"])
            found.add(tuned.predictions == tuned.labels, {"train_loss": tuned.train_loss})
        return found


def _images(config: Any, facts: RunFacts) -> int:
    """Images that all draws of one subject are fine-tuned on, epochs counted."""
    if "finetune" not in config.ways:
        return 0
    each = zip(config.fractions, config.epochs, strict=False)
    per_draw = sum(round(part * facts.num_labelled) * epochs for part, epochs in each)
    return int(config.draws * per_draw)
