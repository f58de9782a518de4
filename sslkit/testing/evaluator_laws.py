"""What an evaluator promises: numbers that are honest, of subjects that it leaves as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from unittest import SkipTest

import torch

from sslkit.api import FeatureBank, FeatureEvaluator
from sslkit.evaluation.scores import ACCURACY, is_score

from .evaluator_bench import (
    CLASSES,
    TEST,
    TRAIN,
    EvaluatorBench,
    Measured,
    chance,
    classes_apart,
    selected,
    unlabelled,
    usual,
)
from .findings import (
    averages_of_draws,
    averages_of_images,
    choosing,
    differing,
    refuse_odd,
    refuse_out_of_bounds,
    said,
    surrounded_by_resamples,
    tensors_of,
)
from .global_random import global_random_numbers_unused
from .laws import law, refuse
from .small_runs import copied, listed, other_bits

MEASURES = ("it-measures-features",)
REPEATS = (*MEASURES, "no-global-random-numbers", "numbers-repeat")
_ORDER = 1e-4
_TOLD_APART = 0.8
_SIGMAS = 6.0


class FeatureLaws(EvaluatorBench):
    """The laws of evaluators on features."""

    @law("return an Evaluation with finite metrics, or Evaluation(skipped='why')")
    def it_measures_features(self) -> str:
        """It finds, of features with labels, an Evaluation whose metrics are finite numbers."""
        found = self._usual.found
        refuse_odd(found)
        return said(found)

    @law(
        "draw with torch, whose generator has the same state for every subject, or from "
        "SampleRandom",
        needs=MEASURES,
    )
    def no_global_random_numbers(self) -> None:
        """It uses no global random numbers of Python or numpy, which differ from run to run."""
        with global_random_numbers_unused("the evaluator"):
            self.on_bank(usual())

    @law(
        "let numbers follow from the subject and the seed alone: what is kept from an earlier call "
        "is lost when a run is resumed",
        needs=(*MEASURES, "no-global-random-numbers"),
    )
    def numbers_repeat(self) -> None:
        """It finds the same numbers of the same features, to the bit: after another subject, and
        as a new evaluator."""
        evaluator, first = self.made(), self._usual.found
        self.on_bank(classes_apart(noise=4.0), evaluator=evaluator)
        ways = {
            "after another subject": self.on_bank(usual(), evaluator=evaluator).found,
            "by a new evaluator": self.on_bank(usual()).found,
        }
        for way, found in ways.items():
            odd = differing(first, found)
            refuse(odd, f"{odd} {way}")

    # --- What it leaves as it is ------------------------------------------------------------------

    @law("work on copies: features are shared with other evaluators", needs=MEASURES)
    def features_are_left(self) -> None:
        """It changes no feature and no label in place."""
        bank = usual()
        before = copied(tensors_of(bank))
        self.on_bank(bank)
        odd = other_bits(before, tensors_of(bank))
        refuse(odd, f"it changed {listed(odd)} of the bank in place")

    @law("use the layers as they come, in eval mode; train a copy (copy.deepcopy)", needs=MEASURES)
    def projection_layers_are_left(self) -> None:
        """It changes no bit of the layers of the projection head and sends nothing through them in
        training mode."""
        seen = self._usual
        refuse(seen.in_training_mode, f"{listed(seen.in_training_mode)} in training mode")
        refuse(seen.changed, f"it changed {listed(seen.changed)}")

    # --- Honest numbers ---------------------------------------------------------------------------

    @law(
        "fit and choose on the training split alone; labels of the test split are for the score",
        needs=(*REPEATS, "scores-lie-within-bounds"),
    )
    def nothing_is_found_where_there_is_nothing(self) -> str:
        """Where features know nothing of the labels, accuracies (names that begin with top1) are no
        higher than chance."""
        if not self.requires_labels:
            raise SkipTest("it measures without labels")
        found = self.on_bank(chance()).found
        accuracies = {n: v for n, v in found.metrics.items() if n.startswith(ACCURACY)}
        if not accuracies:
            raise SkipTest(f"it finds no accuracy: {said(found)}")
        p = 1.0 / CLASSES
        limit = p + _SIGMAS * math.sqrt(p * (1.0 - p) / TEST)
        for name, value in accuracies.items():
            refuse(
                value > limit,
                f"{name} is {value:.3f} of features without meaning, where chance is {p:g} "
                f"(at most {limit:.3f} of {TEST} test images by chance)",
            )
        return ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())

    @law("look at what becomes of the features on the way to the score", needs=REPEATS)
    def classes_that_lie_apart_are_told_apart(self) -> str:
        """Where classes are far apart, scores (top1..., recall_at_..., map, nmi, ari) are nearly
        1."""
        found = self.on_bank(classes_apart()).found
        scores = {name: value for name, value in found.metrics.items() if is_score(name)}
        if not scores:
            raise SkipTest(f"it finds no score: {said(found)}")
        for name, value in scores.items():
            refuse(value < _TOLD_APART, f"{name} is {value:.3f} of classes that lie apart")
        return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())

    @law("return a share as 0 to 1, not in percent", needs=MEASURES)
    def scores_lie_within_bounds(self) -> None:
        """Scores and shares, by their names, lie between 0 and 1 (ari between -1 and 1)."""
        for bank in (usual(), classes_apart(), chance()):
            refuse_out_of_bounds(self.on_bank(bank).found)

    @law(
        "report as `per_image` the score that each labelled test image adds to the metric, in the "
        "order of the bank",
        needs=MEASURES,
    )
    def scores_of_images_average_to_the_metric(self) -> str:
        """`per_image` has a score of 0 to 1 for each test image, whose weighted mean is the metric
        of that name."""
        return averages_of_images(self._usual.found, TEST) or _nothing("scores of images")

    @law("report the mean of `draws` as the metric, not the best and not the last", needs=MEASURES)
    def draws_average_to_the_metric(self) -> str:
        """The mean of `draws` is the metric of that name."""
        return averages_of_draws(self._usual.found) or _nothing("draws")

    @law(
        "resample the test split, with replacement, and compute the metric anew: "
        "sslkit.nn.resampling.resample",
        needs=MEASURES,
    )
    def resampled_values_lie_around_the_metric(self) -> str:
        """`resamples` holds values of the metric of that name, on test splits that are drawn from
        this one: it lies among them."""
        return surrounded_by_resamples(self._usual.found) or _nothing("resampled values")

    @law(
        "let no test image influence the score of another one",
        needs=(*REPEATS, "projection-layers-are-left"),
    )
    def order_of_test_images_does_not_matter(self) -> None:
        """The same test images in another order have the same metrics."""
        bank, draw = usual(), torch.Generator().manual_seed(4)
        other = selected(bank, torch.arange(TRAIN), torch.randperm(TEST, generator=draw))
        was, now = self._usual.found.metrics, self.on_bank(other).found.metrics
        chosen = choosing(self._usual.found)
        if chosen:
            raise SkipTest(f"it chooses test images by their place: {listed(chosen)}")
        for name in was.keys() | now.keys():
            one, another = was.get(name, math.nan), now.get(name, math.nan)
            far = abs(one - another) / max(abs(one), 1.0)
            refuse(not far <= _ORDER, f"{name} {one:.6g} became {another:.6g} in another order")

    # --- Subjects of every kind -------------------------------------------------------------------

    @law("measure what is there, or return Evaluation(skipped='why')", needs=MEASURES)
    def a_class_may_be_missing(self) -> str:
        """Where a class has no training image, or no test image, it measures, or says why not."""
        bank, found = usual(), []
        every = torch.arange(TRAIN), torch.arange(TEST)
        for split, labels in ((0, bank.train_labels), (1, bank.test_labels)):
            rows = list(every)
            rows[split] = (labels != 1).nonzero().squeeze(1)
            found.append(self._copes(selected(bank, *rows), "with a class missing"))
        return "; ".join(found)

    @law("solve in the smaller of both dimensions, or regularise", needs=MEASURES)
    def dimensions_may_outnumber_images(self) -> str:
        """Where features have more dimensions than there are training images, it measures."""
        return self._copes(
            classes_apart(noise=6.0, width=TRAIN + 20), "of more dimensions than images"
        )

    @law(
        "add an epsilon where it divides by a deviation or a norm: a collapse is a number, or is "
        "skipped with a reason",
        needs=(*MEASURES, "dimensions-may-outnumber-images"),
    )
    def collapsed_features_are_measured(self) -> str:
        """Where all images have the same feature, or features are zero, it measures, or says why
        not."""
        bank = usual()
        return "; ".join(
            self._copes(
                replace(
                    bank, train=torch.full_like(bank.train, v), test=torch.full_like(bank.test, v)
                ),
                f"that are all {v:g}",
            )
            for v in (0.7, 0.0)
        )

    @law(
        "measure what is there, or return Evaluation(skipped='why')",
        needs=(*MEASURES, "dimensions-may-outnumber-images"),
    )
    def few_images_are_enough(self) -> str:
        """It measures two training images of each class and one test image of each, or says why
        not."""
        few = selected(usual(), torch.arange(2 * CLASSES), torch.arange(CLASSES))
        if (reason := self.refused(few)) is not None:
            raise SkipTest(f"a run would be refused: {reason}")
        return self._copes(few, "of few images")

    @law(
        "set requires_labels = True, or look at no label, and at the training split where there is "
        "no test split",
        needs=MEASURES,
    )
    def it_measures_without_labels(self) -> str:
        """Without `requires_labels` it measures images that have no label, with and without a test
        split."""
        if self.requires_labels:
            raise SkipTest("it requires labels, and says so")
        bank = unlabelled(usual())
        none = replace(bank, test=bank.test[:0], test_labels=bank.test_labels[:0])
        return "; ".join(self._copes(b, "without labels") for b in (bank, none))

    @law("leave out of `baselines` what it cannot measure", needs=MEASURES)
    def its_baselines_can_be_measured(self) -> str:
        """It measures raw pixels, which have no projection head, where `baselines` has them."""
        found = self.on_bank(usual(), subject="pixels").found
        refuse_odd(found)
        return said(found)

    @law(
        'name in `splits` both splits that it reads: where it is ("test",), there may be no '
        "training features",
        needs=REPEATS,
    )
    def it_reads_the_splits_that_it_names(self) -> None:
        """Where `splits` leaves the training split out, its numbers are the same without it."""
        parts = [p for p in self.made().parts() if isinstance(p, FeatureEvaluator)]
        if not parts or any("train" in part.splits for part in parts):
            raise SkipTest("it reads the training split, and says so")
        bank = usual()
        empty = replace(bank, train=bank.train[:0], train_labels=bank.train_labels[:0])
        odd = differing(self._usual.found, self.on_bank(empty).found)
        refuse(odd, f"{odd} without training features")

    @cached_property
    def _usual(self) -> Measured:
        return self.on_bank(usual())

    def _copes(self, bank: FeatureBank, words: str) -> str:
        try:
            found = self.on_bank(bank).found
        except SkipTest:
            raise
        except Exception as error:
            error.args = (f"{error} (features {words})",)
            raise
        refuse_odd(found, f" of features {words}")
        return said(found)


def _nothing(what: str) -> str:
    raise SkipTest(f"it reports no {what}")
