"""The benchmarks of several processes work, at sizes that say nothing about speed."""

from __future__ import annotations

import pytest

from tests.benchmarks.ranks_exactness import OURS, our_rows, peer_rows
from tests.benchmarks.ranks_overhead import overheads
from tests.ranks.differences import BOUNDS


@pytest.mark.slow  # 3 seconds
def test_parts_of_a_step_are_parts() -> None:
    (found,) = overheads([2], [8], 1, [])
    shares = (found.gather, found.statistics, found.reduction, found.objective)
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert found.gather > 0.0
    assert found.statistics > 0.0
    assert found.ceiling_ms > 0.0


@pytest.mark.slow  # five seconds
def test_our_rows_are_exact() -> None:
    rows = list(our_rows(["simclr"], [1, 2], 1))
    assert [row[:3] for row in rows] == [
        ("simclr", norm, passes) for norm in ("batch", "layer") for passes in ("whole", "parts")
    ]
    for _, _, _, *columns, own, bits in rows:
        for what, cell in zip(OURS, columns, strict=True):
            one, two = map(float, cell.split(", "))
            assert one == 0.0
            assert two < BOUNDS[what]
        assert 1e-8 < float(own) < 1e-4
        assert bits == "equal"


def test_rows_of_a_library_whose_losses_gather() -> None:
    """Of those that nobody doubts: that they are right shows that they are called rightly."""
    pytest.importorskip("lightly", reason="one of the parity packages")
    rows = {name: values for name, *values in peer_rows(2)}
    for name in ("NTXentLoss", "VICRegLoss", "TiCoLoss", "SwaVLoss"):
        assert rows[name] == ["1.0000"] * 3
