"""Each of these schedules breaks one law, and the kit names that one."""

from __future__ import annotations

import pytest

from sslkit.api import Schedule
from sslkit.testing import check_plugin
from tests.testing import broken_schedule as broken
from tests.testing.outcomes import broken_laws


@pytest.mark.parametrize(
    ("schedule", "law"),
    [
        (broken.CountsCalls, "it-has-no-memory"),
        (broken.LowersOnce, "it-has-no-memory"),
        (broken.KeepsItsStep, "threads-may-ask-it"),
        (broken.FollowsTheClock, "factors-follow-from-configuration-and-step"),
        (broken.DrawsNumbers, "factors-follow-from-configuration-and-step"),
        (broken.CountsInTheClass, "factors-follow-from-configuration-and-step"),
        (broken.CountsOnLabels, "it-judges-any-data"),
        (broken.NamesNoField, "it-judges-any-data"),
        (broken.DividesByWhatIsLeft, "factors-are-finite-and-not-negative"),
        (broken.TakesACallable, "its-fields-have-a-schema"),
        (broken.GoesBelowZero, "factors-are-finite-and-not-negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_it_breaks_one_law(schedule: type[Schedule], law: str) -> None:
    assert broken_laws(schedule) == [law]


def test_it_says_what_was_seen() -> None:
    report = check_plugin(broken.LowersOnce, fast=True)
    (line,) = report.broken
    assert line.startswith("schedule 'LowersOnce': it-has-no-memory: Asked in any order")
    assert "after 0 of 1000 steps the factor is 1.0, and 0.0 asked again" in line


def test_a_clock_is_told_from_random_numbers() -> None:
    (line,) = check_plugin(broken.FollowsTheClock, fast=True).broken
    assert "an hour later" in line or "of another one" in line
    (line,) = check_plugin(broken.DrawsNumbers, fast=True).broken
    assert "of another one" in line
