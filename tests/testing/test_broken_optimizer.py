"""Each of these optimisers breaks one law, and the kit names that one."""

from __future__ import annotations

import pytest

from sslkit.api import Optimizer
from sslkit.testing import check_plugin
from tests.testing import broken_optimizer as broken
from tests.testing.outcomes import broken_laws


@pytest.mark.parametrize(
    ("optimizer", "law"),
    [
        (broken.ForgetsMomentum, "state-is-complete"),
        (broken.ForgetsSteps, "state-is-complete"),
        (broken.DecaysBiases, "weight-decay-is-that-of-the-group"),
        (broken.NeverDecays, "weight-decay-is-that-of-the-group"),
        (broken.KeepsItsRate, "rules-are-read-in-every-step"),
        (broken.HasOneRate, "groups-have-their-own-learning-rate"),
        (broken.DropsKeys, "it-makes-a-torch-optimiser-of-its-groups"),
        (broken.Ascends, "it-lowers-a-convex-loss"),
        (broken.DecaysAtAnyRate, "learning-rate-zero-changes-nothing"),
        (broken.AdaptsAll, "plain-groups-are-not-adapted"),
        (broken.DividesByNorms, "zeros-are-finite"),
        (broken.AddsNoise, "steps-repeat"),
        (broken.MovesWhatHasNoGradient, "parameters-without-gradient-are-left"),
        (broken.StepsInSpiteOfOverflow, "a-step-that-overflows-is-left-out"),
        (broken.HasAnOddRange, "its-usual-rates-are-a-range"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_it_breaks_one_law(optimizer: type[Optimizer], law: str) -> None:
    assert broken_laws(optimizer, lr=0.01) == [law]


def test_plain_descent_breaks_none() -> None:
    """What the broken ones are made of: each fault is all that is wrong with it."""
    assert broken_laws(broken.Broken, lr=0.01) == []


def test_it_says_what_was_seen() -> None:
    (line,) = check_plugin(broken.DecaysBiases, fast=True, lr=0.01).broken
    assert "'bias' has no weight decay, and moved by" in line
    (line,) = check_plugin(broken.DropsKeys, fast=True, lr=0.01).broken
    assert "DropsKeys.create dropped adapt and lr_constant and lr_scale from the groups" in line
