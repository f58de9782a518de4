"""The benchmarks of several processes work, at sizes that say nothing about speed."""

from __future__ import annotations

import pytest

from tests.benchmarks.ranks_exactness import our_rows, peer_rows
from tests.benchmarks.ranks_overhead import overheads


def test_parts_of_a_step_are_parts() -> None:
    (found,) = overheads([2], [8], 1, [])
    shares = (found.gather, found.statistics, found.reduction, found.objective)
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert found.gather > 0.0
    assert found.statistics > 0.0
    assert found.ceiling_ms > 0.0


def test_our_rows_are_exact() -> None:
    rows = list(our_rows(["simclr"], [2], 1))
    assert len(rows) == 4
    for _, ranks, *differences, same in rows:
        assert ranks == "2"
        assert all(float(difference) < 1e-12 for difference in differences)
        assert same == "yes"


def test_rows_of_a_library_whose_losses_gather() -> None:
    """Of those that nobody doubts: that they are right shows that they are called rightly."""
    pytest.importorskip("lightly", reason="one of the parity packages")
    rows = {name: values for name, *values in peer_rows(2)}
    for name in ("NTXentLoss", "VICRegLoss", "TiCoLoss", "SwaVLoss"):
        assert rows[name] == ["1.0000"] * 3
