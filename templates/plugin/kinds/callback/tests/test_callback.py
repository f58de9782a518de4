"""Norms that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sslkit.api import Progress, RunView

from sslkit_newname.callback import NewName

RUN = RunView(Path("run"), "run-s0", {}, {})
GRADIENTS = {
    "backbone.first.weight": torch.tensor([[3.0, 0.0]]),
    "backbone.first.bias": torch.tensor([4.0]),
    "backbone.second.weight": torch.zeros(2, 2),
    "head.weight": torch.tensor([[-5.0]]),
}


def found(depth: int) -> dict[str, float]:
    callback = NewName(NewName.Config(depth=depth))
    values = callback.on_gradients(RUN, GRADIENTS, Progress(1, 10, 10))
    return {key: float(value) for key, value in values.items()}


def test_a_part_has_the_norm_of_all_its_gradients() -> None:
    values = found(depth=1)
    assert values["backbone"] == pytest.approx(5.0)
    assert values["head"] == pytest.approx(5.0)
    assert values["backbone/share"] == pytest.approx(0.5)


def test_depth_divides_parts() -> None:
    values = found(depth=2)
    assert values["backbone.first"] == pytest.approx(5.0)
    assert values["backbone.second"] == 0.0
    assert "backbone" not in values


def test_gradients_are_left_as_they_are() -> None:
    before = {name: gradient.clone() for name, gradient in GRADIENTS.items()}
    found(depth=1)
    assert all(torch.equal(GRADIENTS[name], before[name]) for name in before)
