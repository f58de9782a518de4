"""Each fault of a method breaks the one law that is meant for it, and no other."""

from __future__ import annotations

import pytest
from broken_methods import BROKEN, GradientIntoTeacher, MasksByPlace, Sound, StaleMetric

from sslkit.api import Method
from sslkit.testing import check_plugin


def broken(method: type[Method], *, fast: bool) -> dict[str, str]:
    """Law -> what was seen."""
    rows = check_plugin(method, fast=fast).rows
    return {row["law"]: row["text"] for row in rows if row["status"] == "failed"}


IN_EVERY_TEST = (Sound, GradientIntoTeacher, MasksByPlace, StaleMetric)
"""What `make test` runs of the methods, each of which takes some seconds."""
METHODS = [
    pytest.param(m, id=m.__name__, marks=[] if m in IN_EVERY_TEST else [pytest.mark.slow])
    for m in (Sound, *BROKEN)
]


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_breaks_its_law_alone(method: type[Method]) -> None:
    law = BROKEN.get(method)
    found = broken(method, fast=law != "ranks-agree")
    assert list(found) == ([law] if law else []), found
