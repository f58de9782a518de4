"""Each fault of a method breaks the one law that is meant for it, and no other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from broken_methods import BROKEN, GradientIntoTeacher, Sound
from outcomes import broken_laws
from subtle_methods import (
    SUBTLE,
    ComparesNothing,
    ExportsAnother,
    FailsOnOneRank,
    IdleTeacher,
    OneViewOnly,
    PlainConstant,
)

from sslkit.api import Method
from sslkit.testing import checks

EVERY: Mapping[type[Method], str] = {**BROKEN, **SUBTLE}
OF_PROCESSES = ("ranks-agree", "another-interpreter-repeats")
"""Laws that take several processes."""
IN_EVERY_TEST = (GradientIntoTeacher,)
"""What `make test` runs of the methods, each of which takes some seconds."""
ALONE = [*list(BROKEN)[::4], *SUBTLE]
"""What is held against every law: of the plainer faults a quarter."""
METHODS = [
    pytest.param(m, id=m.__name__, marks=[] if m in IN_EVERY_TEST else [pytest.mark.slow])
    for m in EVERY
    if m not in ALONE
]


@pytest.mark.slow  # 10 to 20 seconds each
@pytest.mark.parametrize("method", ALONE)
def test_a_fault_breaks_its_law_alone(method: type[Method]) -> None:
    law = EVERY[method]
    assert broken_laws(method, fast=law not in OF_PROCESSES) == [law]


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_breaks_its_law(method: type[Method]) -> None:
    (check,) = (check for check in checks(method) if str(check) == EVERY[method])
    assert check.outcome().status == "failed"


@pytest.mark.slow
def test_the_rank_that_failed_first_is_named_with_its_line() -> None:
    """The first rank, which lost the other, was named, and no line."""
    (check,) = (check for check in checks(FailsOnOneRank) if str(check) == "ranks-agree")
    text = check.outcome().text
    assert text.startswith("rank 1: ValueError: no weights here (")
    assert "subtle_methods.py:" in text


def seen(method: type[Method], law: str) -> str:
    """What a law says of a method that meets it."""
    (outcome,) = (check.outcome() for check in checks(method, fast=True) if str(check) == law)
    assert outcome.status == "passed", outcome
    return outcome.text


@pytest.mark.slow  # 2 seconds
def test_a_constant_that_stays_on_the_cpu_is_named() -> None:
    law = "constants-follow-their-inputs"
    (outcome,) = (c.outcome() for c in checks(PlainConstant, fast=True) if str(c) == law)
    assert outcome.text == (
        "mul takes float32 and float64 together; in float32 is weights, which is no buffer"
    )


@pytest.mark.slow  # eight seconds
def test_what_no_law_can_forbid_is_said_beside_it() -> None:
    order = "loss-does-not-depend-on-order"
    assert seen(ComparesNothing, order) == "the loss compares no two views of an image"
    assert seen(OneViewOnly, order) == "view 1 has no part in the loss"
    assert seen(Sound, order) == ""
    teacher = "no-gradient-trains-a-teacher"
    assert seen(IdleTeacher, teacher) == "teacher: moved by the method, without a part in the loss"
    assert seen(Sound, teacher) == ""
    trained = seen(ExportsAnother, "gradients-reach-what-is-trained")
    assert "parameters; left as they began: first.model.conv1.0.weight" in trained
