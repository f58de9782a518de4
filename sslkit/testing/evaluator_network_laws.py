"""What evaluators promise that take an encoder: they measure it as it is, and leave it so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from unittest import SkipTest

import torch

from sslkit.evaluation.scores import ACCURACY

from .evaluator_bench import Measured
from .evaluator_laws import FeatureLaws
from .findings import (
    averages_of_draws,
    averages_of_images,
    differing,
    refuse_odd,
    refuse_out_of_bounds,
    said,
    surrounded_by_resamples,
)
from .global_random import global_random_numbers_unused
from .laws import law, refuse
from .small_runs import listed

MEASURES = ("it-measures-networks",)
_SIGMAS = 6.0


class EvaluatorLaws(FeatureLaws):
    """The laws of `Evaluator`."""

    @law(
        "return an Evaluation with finite metrics, or Evaluation(skipped='why'); data that it "
        "needs belong into a field, and what is wrong with them into `problems`",
        slow=True,
    )
    def it_measures_networks(self) -> str:
        """It finds, of an encoder, an Evaluation whose metrics are finite numbers."""
        found = self._measured.found
        refuse_odd(found)
        return said(found)

    @law(
        "leave the mode of the encoder alone; train a copy (copy.deepcopy), and put that into "
        "evaluation mode before it is measured",
        needs=MEASURES,
        slow=True,
    )
    def the_encoder_is_measured_in_eval_mode(self) -> None:
        """It sends nothing through the encoder itself in training mode, where dropout is on and
        batches share their statistics, and leaves no part of it in that mode."""
        seen = self._measured.in_training_mode
        refuse(seen, f"{listed(list(dict.fromkeys(seen)))} in training mode")

    @law(
        "train a copy (copy.deepcopy) of the encoder",
        needs=(*MEASURES, "the-encoder-is-measured-in-eval-mode"),
        slow=True,
    )
    def the_encoder_keeps_every_bit(self) -> None:
        """It changes no parameter and no buffer of the encoder or of the projection head."""
        changed = self._measured.changed
        refuse(changed, f"it changed {listed(changed)}")

    @law(
        "draw with torch, whose generator has the same state for every subject, or from "
        "SampleRandom",
        needs=MEASURES,
        slow=True,
    )
    def networks_need_no_global_random_numbers(self) -> None:
        """Measuring an encoder, it uses no global random numbers of Python or numpy."""
        with global_random_numbers_unused("the evaluator"):
            self.on_networks()

    @law(
        "let numbers follow from the encoder and the seed alone",
        needs=(*MEASURES, "networks-need-no-global-random-numbers"),
        slow=True,
    )
    def numbers_of_networks_repeat(self) -> None:
        """It finds the same numbers of the same encoder, to the bit, in a second call and as a new
        evaluator."""
        evaluator, first = self.made(), self._measured.found
        self.on_networks(evaluator)
        for words, other in (("in a second call", evaluator), ("by a new evaluator", None)):
            odd = differing(first, self.on_networks(other).found)
            refuse(odd, f"{odd} {words}")

    @law(
        "report shares as 0 to 1; as `per_image` the score of each labelled test image; the mean "
        "of `draws` as the metric",
        needs=MEASURES,
        slow=True,
    )
    def what_it_finds_in_networks_agrees(self) -> str | None:
        """Scores of an encoder, too, lie within bounds, and those of images and of draws average to
        their metric, and resampled values lie around theirs."""
        found = self._measured.found
        refuse_out_of_bounds(found)
        images = averages_of_images(found, len(self.images.labelled("test")))
        said_too = averages_of_draws(found), surrounded_by_resamples(found)
        return ", ".join(filter(None, (images, *said_too))) or None

    @law(
        "fit and choose on training images alone; labels of test images are for the score",
        needs=(*MEASURES, "numbers-of-networks-repeat", "what-it-finds-in-networks-agrees"),
        slow=True,
    )
    def networks_learn_nothing_from_shuffled_labels(self) -> str:
        """Where labels are shuffled among images, accuracies of networks (names that begin with
        top1) are no higher than chance."""
        if not self.requires_labels:
            raise SkipTest("it does not measure the labels of these images")
        with self._shuffled_labels():
            found = self.on_networks().found
            counts = self.images.labels("test").bincount().double()
        accuracies = {n: v for n, v in found.metrics.items() if n.startswith(ACCURACY)}
        if not accuracies:
            raise SkipTest(f"it finds no accuracy: {said(found)}")
        p, total = float(counts.max() / counts.sum()), float(counts.sum())
        limit = p + _SIGMAS * math.sqrt(p * (1.0 - p) / total)
        for name, value in accuracies.items():
            refuse(
                value > limit,
                f"{name} is {value:.3f} of shuffled labels, and at most {limit:.3f} of "
                f"{total:g} test images by chance",
            )
        return ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())

    @law(
        "define evaluate_pixels, or leave pixels out of `baselines`",
        slow=True,
    )
    def raw_samples_can_be_measured(self) -> str:
        """It measures raw samples of data of its own where `baselines` has them."""
        found = self.on_raw_samples().found
        refuse_odd(found)
        refuse_out_of_bounds(found)
        return said(found)

    @cached_property
    def _measured(self) -> Measured:
        return self.on_networks()

    @contextmanager
    def _shuffled_labels(self) -> Iterator[None]:
        draw, kept = torch.Generator().manual_seed(6), []
        for store in self.experiment.stores.present().values():
            if store.labels is not None:
                kept.append((store.labels, store.labels.clone()))
                order = torch.randperm(len(store.labels), generator=draw)
                store.labels.copy_(store.labels[order])
        try:
            yield
        finally:
            for labels, values in kept:
                labels.copy_(values)
