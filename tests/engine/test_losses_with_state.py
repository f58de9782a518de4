"""A loss with roles and a centre, as DINO's: changed once a step, by the whole batch, and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import (
    ComponentConfig,
    Loss,
    LossInput,
    Progress,
    Slot,
    missing_parts,
    rewards_collapse,
)
from sslkit.builtin.losses import NTXent
from sslkit.engine.display import Silent
from sslkit.errors import PluginError
from sslkit.runs.checkpoint import load
from sslkit.testing import checks
from sslkit.workflows.train import start

SHORT = ["train.max_steps=3", "evaluate=[]"]


class Centred(Loss):
    """DINO's cross entropy with a centre (Caron et al. 2021, arXiv 2104.14294, equation 4)."""

    requires = frozenset({"online", "teacher"})
    centre: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("centre", torch.zeros(1, 3))

    def forward(self, inputs: LossInput) -> Tensor:
        (online,), (teacher,) = inputs.online, inputs.teacher
        target = ((teacher.detach() - self.centre) / 0.04).softmax(dim=1)
        return -(target * (online / 0.1).log_softmax(dim=1)).sum(dim=1).mean()

    def after_step(self, progress: Progress, inputs: Sequence[LossInput]) -> None:
        mean = torch.cat([part for each in inputs for part in each.teacher]).mean(dim=0)
        self.centre.lerp_(mean[None], 0.1)


def test_the_centre_and_the_roles() -> None:
    loss, teacher = Centred(ComponentConfig()), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    online = torch.zeros(2, 3, requires_grad=True)
    inputs = LossInput(online=(online,), teacher=(teacher,))
    assert loss(inputs).item() == pytest.approx(torch.tensor(3.0).log().item())
    loss.after_step(Progress(1, 2, 2), [inputs.detach()])
    torch.testing.assert_close(loss.centre, torch.tensor([[0.05, 0.1, 0.0]]))
    assert "centre" in loss.state_dict()
    assert not inputs.detach().online[0].requires_grad
    slot = Slot(Centred, "centred", ComponentConfig(), "mine", "1")
    assert missing_parts(slot) == [
        "centred needs what the online network gives and what a teacher gives, which this method "
        "does not provide; choose another loss"
    ]
    assert missing_parts(slot, ("online", "teacher")) == []


def test_a_method_without_views_can_say_so() -> None:
    roles = ("online", "teacher")
    slot = Slot(Centred, "centred", ComponentConfig(), "mine", "1")
    assert missing_parts(slot, roles, views=False) == []
    pairs = Slot(NTXent, "nt_xent", NTXent.Config(), "sslkit", "1")
    assert missing_parts(pairs, roles) == []
    assert missing_parts(pairs, roles, views=False) == [
        "nt_xent needs embeddings of views, which this method does not provide; choose another loss"
    ]

    class Queued(NTXent):
        requires = frozenset({"negatives"})

    queued = Slot(Queued, "queued", NTXent.Config(), "mine", "1")
    assert missing_parts(queued, roles, views=False) == [
        "queued needs embeddings of views and further negatives, which this method does not "
        "provide; choose another loss"
    ]


class Triple(NTXent):
    num_views = 3

    def forward(self, inputs: LossInput) -> Tensor:
        _, _, _ = inputs.views
        return super().forward(inputs)


def test_a_number_of_views_that_a_loss_does_not_take_is_refused() -> None:
    """It was the first step that ended, in a line without a field."""
    slot = Slot(Triple, "triple", NTXent.Config(), "mine", "1")
    assert missing_parts(slot) == missing_parts(slot, num_views=3) == []
    assert missing_parts(slot, views=False, num_views=2) != []
    assert missing_parts(slot, num_views=2) == [
        "triple takes 3 views, and this method gives it 2; choose another loss, or other views"
    ]
    assert missing_parts(Slot(NTXent, "nt_xent", NTXent.Config(), "a", "1"), num_views=5) == []


def test_a_loss_is_tried_with_the_views_that_it_takes() -> None:
    class Close(Triple):
        def forward(self, inputs: LossInput) -> Tensor:
            first, second, third = inputs.views
            return (first - second).square().mean() + (first - third).square().mean()

    assert not rewards_collapse(Triple(NTXent.Config()))
    assert rewards_collapse(Close(NTXent.Config()))
    statuses = {str(check): check.outcome().status for check in checks(Triple, fast=True)}
    assert "failed" not in statuses.values(), statuses


def with_state(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, int, int]]) -> None:
    """Gives NT-Xent a buffer that counts steps."""
    plain = NTXent.__init__

    def init(self: Any, config: Any) -> None:
        plain(self, config)
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self: Any, progress: Progress, inputs: Sequence[LossInput]) -> None:
        seen.append((progress.step, len(inputs), len(inputs[0].views[0])))
        self.steps += 1

    monkeypatch.setattr(NTXent, "__init__", init)
    monkeypatch.setattr(NTXent, "after_step", after_step)


@pytest.mark.parametrize("size", ["null", "8"])
def test_it_is_told_once_a_step_of_the_whole_batch(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    seen: list[tuple[int, int, int]] = []
    with_state(monkeypatch, seen)
    run = start(str(tiny), [*SHORT, f"train.micro_batch_size={size}"], display=Silent()).run_dir
    assert seen == [(1, 1, 16), (2, 1, 16), (3, 1, 16)]
    assert load(run / "checkpoints" / "step-00000003.pt")["method"]["loss.steps"] == 3


def test_a_method_that_forgets_its_loss_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslkit.builtin import simclr

    with_state(monkeypatch, [])
    made = simclr.StepOutput
    monkeypatch.setattr(simclr, "StepOutput", lambda loss, losses: made(loss))
    with pytest.raises(PluginError, match="says nothing of its loss NTXent"):
        start(str(tiny), SHORT, display=Silent())
