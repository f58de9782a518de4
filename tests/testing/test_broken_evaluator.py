"""Each of these evaluators breaks one law, and the kit names that one."""

from __future__ import annotations

import pytest

from sslkit.api import Evaluator
from sslkit.testing import check_plugin
from tests.testing import broken_evaluator as broken
from tests.testing.outcomes import broken_laws


def _named(value: object) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", "")


@pytest.mark.parametrize(
    ("evaluator", "law"),
    [
        (broken.FitsOnTestLabels, "nothing-is-found-where-there-is-nothing"),
        (broken.FindsTheImageItself, "nothing-is-found-where-there-is-nothing"),
        (broken.CentresInPlace, "features-are-left"),
        (broken.ReportsTheBestDraw, "draws-average-to-the-metric"),
        (broken.ReportsOtherImages, "scores-of-images-average-to-the-metric"),
        (broken.ResamplesTheTrainingSplit, "resampled-values-lie-around-the-metric"),
        (broken.CountsInPercent, "scores-lie-within-bounds"),
        (broken.KeepsTheBest, "numbers-repeat"),
        (broken.DrawsFromNumpy, "no-global-random-numbers"),
        (broken.DividesByTheDeviation, "collapsed-features-are-measured"),
        (broken.InvertsTheCovariance, "dimensions-may-outnumber-images"),
        (broken.CountsClassesThatOccur, "a-class-may-be-missing"),
        (broken.CentresBlocks, "order-of-test-images-does-not-matter"),
        (broken.ProjectsPixels, "its-baselines-can-be-measured"),
        (broken.TrainsTheHead, "projection-layers-are-left"),
        (broken.ReadsTheTrainingSplit, "it-reads-the-splits-that-it-names"),
        (broken.NeedsLabels, "it-measures-without-labels"),
        (broken.ReturnsADict, "it-measures-features"),
        (broken.Guesses, "classes-that-lie-apart-are-told-apart"),
        (broken.LooksAtTwenty, "few-images-are-enough"),
    ],
    ids=_named,
)
def test_it_breaks_one_law(evaluator: type[Evaluator], law: str) -> None:
    assert broken_laws(evaluator) == [law]


@pytest.mark.parametrize(
    ("evaluator", "law"),
    [
        (broken.DividesByNothing, "it-measures-networks"),
        (broken.GoesOnDrawing, "numbers-of-networks-repeat"),
        (broken.CountsNetworksInPercent, "what-it-finds-in-networks-agrees"),
        (broken.PromisesPixels, "raw-samples-can-be-measured"),
        (broken.KeepsDropoutOn, "the-encoder-is-measured-in-eval-mode"),
        (broken.TrainsTheEncoder, "the-encoder-keeps-every-bit"),
        (broken.DrawsFromPython, "networks-need-no-global-random-numbers"),
        (broken.TestsOnTestImages, "networks-learn-nothing-from-shuffled-labels"),
    ],
    ids=_named,
)
@pytest.mark.slow  # an interpreter for the import, and a small run for the encoder
def test_it_breaks_one_law_of_networks(evaluator: type[Evaluator], law: str) -> None:
    assert broken_laws(evaluator, fast=False) == [law]


def test_what_they_are_made_of_breaks_none() -> None:
    assert broken_laws(broken.Sound) == []


@pytest.mark.slow  # a small run for the encoder
def test_what_those_of_networks_are_made_of_breaks_none() -> None:
    assert broken_laws(broken.SoundOnImages, fast=False) == []


def test_it_says_what_was_seen() -> None:
    (line,) = check_plugin(broken.FindsTheImageItself, fast=True).broken
    assert "top1 is 1.000 of features without meaning, where chance is 0.25" in line
    (line,) = check_plugin(broken.ReportsTheBestDraw, fast=True).broken
    assert "and the draws average to" in line
