"""A loss that draws groups of images: the same ones wherever an image stands in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import ComponentConfig, Loss, LossInput, Slot, missing_parts, rewards_collapse
from sslkit.builtin.losses import InfoNCE, NTXent
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.randomness import SampleRandom
from sslkit.testing import Check, checks
from sslkit.workflows.train import start


class Grouped(Loss):
    """The variance within two groups, which random numbers of the images choose."""

    requires = frozenset({"random"})

    def forward(self, inputs: LossInput) -> Tensor:
        assert inputs.random is not None
        order = inputs.random.bits("groups", 1)[:, 0].argsort()
        groups = [part for view in inputs.views for part in view.float()[order].chunk(2)]
        return -torch.stack([part.var(dim=0).mean() for part in groups]).mean()


@pytest.mark.parametrize(
    "check",
    [
        check
        for check in checks(Grouped, fast=True)
        # of two images, each is a group of its own; a variance is not bounded
        if str(check) not in ("two-images-are-enough", "any-scale-is-finite")
    ],
    ids=str,
)
def test_laws(check: Check) -> None:
    check()


def test_a_method_says_whether_it_gives_random_numbers() -> None:
    slot = Slot(Grouped, "grouped", ComponentConfig(), "mine", "1")
    assert missing_parts(slot) == [
        "grouped needs random numbers for each image, which this method does not provide; choose "
        "another loss"
    ]
    assert missing_parts(slot, ("labels", "random")) == []
    assert not rewards_collapse(Grouped(ComponentConfig()))


@pytest.mark.slow  # 2 seconds
def test_simclr_gives_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[SampleRandom] = []

    def forward(self: Any, inputs: LossInput) -> Tensor:
        assert inputs.random is not None
        seen.append(inputs.random)
        return plain(self, inputs)

    plain = NTXent.forward
    monkeypatch.setattr(NTXent, "requires", frozenset({"random"}))
    monkeypatch.setattr(NTXent, "forward", forward)
    short = ["train.max_steps=2", "evaluate=[]", f"runs_dir={tmp_path}", "train.device=cpu"]
    assert start("quickstart", short, display=Silent()).status == "finished"
    first, second = seen[-2:]
    assert not torch.equal(first.indices, second.indices)


def test_a_method_without_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sslkit_byol")
    monkeypatch.setattr(InfoNCE, "requires", frozenset({"random"}))
    with pytest.raises(
        RecipeError,
        match="info_nce needs random numbers for each image, which",
    ):
        start("quickstart", ["method={name: byol, loss: {name: info_nce}}"], display=Silent())
