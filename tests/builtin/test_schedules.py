"""End points, middle and warm-up of the schedules."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from sslkit.api import Progress, Schedule
from sslkit.builtin.schedules import Constant, Cosine, MultiStep


def curve(schedule: Schedule, total: int = 100, per_epoch: int = 10) -> list[float]:
    return [schedule.factor(Progress(step, total, per_epoch)) for step in range(total + 1)]


def test_cosine_goes_from_one_to_zero() -> None:
    factors = curve(Cosine(Cosine.Config()))
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-15)
    assert factors == sorted(factors, reverse=True)


def test_warm_up_starts_at_zero_and_reaches_the_peak() -> None:
    factors = curve(Cosine(Cosine.Config(warmup_epochs=2)))
    assert factors[0] == 0.0
    assert factors[1] == pytest.approx(1 / 20)
    assert factors[20] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-15)


def test_fractional_warm_up() -> None:
    factors = curve(Cosine(Cosine.Config(warmup_epochs=0.25)))
    assert factors[:3] == pytest.approx([0.0, 0.4, 0.8])
    assert factors[3] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5 / 97.5)))


def test_final_factor() -> None:
    factors = curve(Cosine(Cosine.Config(final_factor=0.001)))
    assert factors[50] == pytest.approx(0.001 + 0.999 * 0.5)
    assert factors[100] == pytest.approx(0.001)


def test_cosine_per_epoch_is_constant_within_an_epoch() -> None:
    per_step, per_epoch = (
        curve(Cosine(Cosine.Config(update=update))) for update in ("step", "epoch")
    )
    assert per_epoch == [per_step[step - step % 10] for step in range(101)]


def test_warm_up_is_per_step_even_where_the_cosine_is_per_epoch() -> None:
    factors = curve(Cosine(Cosine.Config(warmup_epochs=2, update="epoch")))
    assert factors[5] == pytest.approx(0.25)
    assert factors[20] == factors[29] == 1.0
    assert factors[30] < 1.0


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    factors = curve(Cosine(Cosine.Config(warmup_epochs=5)), total=20)
    assert factors == pytest.approx([step / 50 for step in range(21)])


def test_constant() -> None:
    assert set(curve(Constant(Constant.Config()))) == {1.0}
    factors = curve(Constant(Constant.Config(warmup_epochs=1)))
    assert factors[:11] == pytest.approx([step / 10 for step in range(11)])
    assert set(factors[10:]) == {1.0}


def test_multistep_drops_at_its_milestones() -> None:
    schedule = MultiStep(MultiStep.Config(milestones=(2, 3.5), gamma=0.1))
    factors = [schedule.factor(Progress(step, 50, 10)) for step in (0, 19, 20, 34, 35, 49)]
    assert factors == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(ValidationError, match="in rising order"):
        MultiStep.Config(milestones=(3, 2))


def test_multistep_warms_up() -> None:
    factors = curve(MultiStep(MultiStep.Config(milestones=(4, 8), gamma=0.2, warmup_epochs=5)))
    assert factors[:3] == pytest.approx([0.0, 0.02, 0.04])
    assert factors[45] == pytest.approx(0.9 * 0.2)  # a milestone within the warm-up counts
    assert factors[79:81] == pytest.approx([0.2, 0.04])
