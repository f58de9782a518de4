"""Every loss that comes with sslkit meets the laws of losses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sslkit.testing import Check, check_plugin, checks
from sslkit.testing.kit import laws_of
from sslkit.testing.subject import find_subject

LOSSES: dict[str, dict[str, Any]] = {
    "nt_xent": {},
    "nt_xent-small-chunks": {"chunk_elements": 20},
    "nt_xent-scheduled": {"temperature": {"name": "cosine", "start": 0.2, "end": 0.5}},
    "info_nce": {},
    "info_nce-small-chunks": {"chunk_elements": 20},
}


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=f"{name}-{check}",
            marks=[pytest.mark.slow] if check.law.slow else [],  # starts an interpreter
        )
        for name, fields in LOSSES.items()
        for check in checks(f"loss:{name.partition('-')[0]}", fast=bool(fields), **fields)
    ],
)
def test_laws(check: Check) -> None:
    check()


@pytest.mark.parametrize(
    ("loss", "equal", "orthogonal"),
    [
        # 8 images: all 15 others, or all 8 keys, are alike; or one is at cosine 1, the rest at 0.
        ("nt_xent", math.log(15), math.log(1 + 14 * math.exp(-1 / 0.5))),
        ("info_nce", math.log(8), math.log(1 + 7 * math.exp(-1 / 0.1))),
    ],
)
def test_closed_values_stand_beside_passed(loss: str, equal: float, orthogonal: float) -> None:
    rows = {row["law"]: row["text"] for row in check_plugin(f"loss:{loss}", fast=True).rows}
    assert rows["equal-embeddings-are-finite"] == f"the loss is {equal:.5g}"
    assert rows["orthogonal-embeddings-are-finite"] == f"the loss is {orthogonal:.5g}"


def test_a_loss_that_rewards_collapse_is_noted() -> None:
    (note,) = laws_of(find_subject("loss:normalized_mse", {})).notes()
    assert note.startswith("equal embeddings have no higher a loss than those that are apart")
    assert list(laws_of(find_subject("loss:nt_xent", {})).notes()) == []
