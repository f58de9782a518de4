"""The factor at points that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sslkit.api import Progress, RunFacts, ViewSpec

from sslkit_newname.schedule import NewName

START = Progress(step=0, total_steps=100, steps_per_epoch=10)


def factor(step: int, **fields: object) -> float:
    schedule = NewName(NewName.Config.model_validate(fields))
    return schedule.factor(replace(START, step=step))


def test_it_warms_up_stays_and_falls() -> None:
    steps = (0, 5, 10, 50, 80)
    found = [factor(step, warmup_epochs=1, cooldown=0.2) for step in steps]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(("shape", "expected"), [("linear", 0.75), ("sqrt", 0.5)])
def test_the_fall_has_its_shape(shape: str, expected: float) -> None:
    assert factor(85, cooldown=0.2, shape=shape) == pytest.approx(expected)  # a quarter is done
    assert factor(100, cooldown=0.2, shape=shape) == 0.0


def test_without_warm_up_and_fall_it_is_constant() -> None:
    assert [factor(step, cooldown=0.0) for step in (0, 50, 100)] == [1.0, 1.0, 1.0]


def test_a_warm_up_that_reaches_into_the_fall_is_refused() -> None:
    facts = RunFacts(
        num_images=80,
        channels=1,
        image_size=(16, 16),
        num_classes=None,
        batch_size=8,
        steps_per_epoch=10,
        total_steps=100,
        views=(ViewSpec(16), ViewSpec(16)),
    )
    fits = NewName.Config(warmup_epochs=8, cooldown=0.2)
    reaches = NewName.Config(warmup_epochs=9, cooldown=0.2)
    assert not list(NewName.problems(fits, facts))
    assert list(NewName.problems(reaches, facts))
