"""Every schedule that comes with sslkit meets the laws of schedules."""

from __future__ import annotations

from typing import Any

import pytest

from sslkit.api import Progress, Schedule
from sslkit.testing import Check, check_plugin, checks
from sslkit.testing.kit import laws_of
from sslkit.testing.subject import find_subject

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "cosine-warmup": {"warmup_epochs": 2.5, "final_factor": 0.1, "update": "epoch"},
    "linear": {},
    "linear-epochs": {"epochs": 0.5},
    "constant": {"warmup_epochs": 3},
    "multistep-warmup": {"milestones": [2.5, 6], "warmup_epochs": 1},
}


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=f"{name}-{check}",
            marks=[pytest.mark.slow] if check.law.slow else [],  # starts an interpreter
        )
        for name, fields in SCHEDULES.items()
        for check in checks(f"schedule:{name.partition('-')[0]}", fast=bool(fields), **fields)
    ],
)
def test_laws(check: Check) -> None:
    check()


def test_the_course_stands_beside_passed() -> None:
    rows = {row["law"]: row["text"] for row in check_plugin("schedule:linear", fast=True).rows}
    assert rows["factors-are-finite-and-not-negative"] == (
        "1 in the first of 1000 steps, 1 at the most, 0.001 in the last"
    )


def test_a_factor_above_the_peak_is_a_note() -> None:
    class Overshoots(Schedule):
        def factor(self, progress: Progress) -> float:
            return 1.5

    (note,) = laws_of(find_subject(Overshoots, {})).notes()
    assert note.startswith("the factor comes to 1.5")
