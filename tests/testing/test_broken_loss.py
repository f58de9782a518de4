"""Each of these losses breaks one law, and the kit names that one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslkit.api import ComponentConfig, Loss, LossInput
from sslkit.nn.functional import normalize
from sslkit.testing import check_plugin
from sslkit.testing.kit import laws_of
from sslkit.testing.subject import find_subject
from tests.testing import broken_loss as broken
from tests.testing.outcomes import broken_laws


@pytest.mark.parametrize(
    ("loss", "law"),
    [
        (broken.MovesItsCentre, "forward-changes-no-state"),
        (broken.CountsItsMetrics, "forward-changes-no-state"),
        (broken.TakesTheFirstForAnchors, "order-of-views-does-not-matter"),
        (broken.LooksAtLabels, "labels-are-asked-for"),
        (broken.LooksAtLabelsIfThereAreAny, "labels-are-asked-for"),
        (broken.DividesByTheDeviation, "equal-embeddings-are-finite"),
        (broken.TakesTheRootOfNothing, "equal-embeddings-are-finite"),
        (broken.DividesByNorms, "zeros-are-finite"),
        (broken.Overflows, "any-scale-is-finite"),
        (broken.NeedsThreeImages, "two-images-are-enough"),
        (broken.StaysInHalf, "half-precision-is-taken-in"),
        (broken.CentresInPlace, "what-it-is-given-is-left"),
        (broken.KeepsGraphs, "metrics-are-numbers-without-gradient"),
        (broken.HidesItsCentre, "state-is-complete"),
        (broken.ReadsItsNumberOnce, "numbers-follow-their-schedule"),
        (broken.AddsNoise, "no-global-random-numbers"),
        (broken.RequiresWhatItIgnores, "what-it-requires-matters"),
        (broken.DerivesWrongly, "gradients-are-those-of-the-value"),
        (broken.DividesByOverlap, "orthogonal-embeddings-are-finite"),
        (broken.RemembersOneCall, "it-may-be-called-several-times"),
        (broken.GivesRows, "it-is-a-finite-scalar"),
        (broken.StopsOneView, "gradients-reach-every-view"),
        (broken.FavoursTheFirstImage, "order-of-images-does-not-matter"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_it_breaks_one_law(loss: type[Loss], law: str) -> None:
    assert broken_laws(loss) == [law]


def test_what_they_are_made_of_breaks_none() -> None:
    assert broken_laws(broken.Sound) == []


def test_it_says_what_was_seen() -> None:
    (line,) = check_plugin(broken.MovesItsCentre, fast=True).broken
    assert "forward changed centre" in line
    (line,) = check_plugin(broken.DerivesWrongly, fast=True).broken
    assert "for views[0] the loss rises by" in line


class CodesOfTheOther(Loss):
    """As SwAV: each view predicts codes of the other, through which no gradient goes."""

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = (normalize(x) for x in inputs.views)
        codes = [x.square().detach() for x in (first, second)]
        return -(codes[0] * second.square() + codes[1] * first.square()).sum(dim=1).mean()


def test_a_gradient_may_be_stopped_on_purpose() -> None:
    rows = {row["law"]: row for row in check_plugin(CodesOfTheOther, fast=True).rows}
    row = rows["gradients-are-those-of-the-value"]
    assert (row["status"], row["text"]) == ("skipped", "it stops gradients on purpose (detach)")
    assert broken_laws(CodesOfTheOther) == []


class Distillation(Loss):
    """Online against a centred teacher, as DINO's without crops: state that is all right."""

    requires = frozenset({"online", "teacher"})
    width = 16

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.register_buffer("centre", torch.zeros(self.width))

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.teacher
        targets = [((x.float() - self.centre) / 0.07).softmax(dim=1) for x in (second, first)]
        pairs = zip(inputs.online, targets, strict=True)
        losses = [-(target * x.float().log_softmax(dim=1)).sum(dim=1).mean() for x, target in pairs]
        return torch.stack(losses).mean()

    def after_step(self, progress: object, inputs: object) -> None:
        for each in inputs:  # type: ignore[attr-defined]
            self.centre.lerp_(torch.cat(each.teacher).mean(dim=0), 0.1)


def test_a_teacher_and_a_centre_break_none() -> None:
    assert broken_laws(Distillation) == []
    rows = {row["law"]: row["text"] for row in check_plugin(Distillation, fast=True).rows}
    assert rows["state-is-complete"] == "after_step changes centre"
    assert rows["what-it-requires-matters"] == "online, teacher"


class Prototypes(Loss):
    """Scores against prototypes, whose number and width are fields."""

    class Config(ComponentConfig):
        count: int = 5
        """Prototypes."""
        dim: int = 6
        """Dimensions of an embedding."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("prototypes", torch.eye(config.count, config.dim))

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = (normalize(x) @ self.prototypes.T for x in inputs.views)
        return (first - second).square().sum(dim=1).mean()


@pytest.mark.parametrize("width", [5, 64, 4096])
def test_a_loss_is_given_embeddings_as_wide_as_its_buffers(width: int) -> None:
    wide = type("Wide", (Distillation,), {"width": width})
    assert broken_laws(wide) == []
    rows = {row["law"]: row["text"] for row in check_plugin(wide, fast=True).rows}
    assert f"of random embeddings of {width} dimensions" in rows["it-is-a-finite-scalar"]


@pytest.mark.parametrize("fields", [{}, {"dim": 6, "count": 7}, {"dim": 300}])
def test_a_loss_is_given_embeddings_as_wide_as_its_fields(fields: dict[str, int]) -> None:
    assert broken_laws(Prototypes, **fields) == []


def test_a_loss_that_takes_no_width_says_which_were_tried() -> None:
    class Narrow(Distillation):
        width = 7

        def forward(self, inputs: LossInput) -> Tensor:
            return (
                super().forward(inputs)
                if inputs.teacher[0].shape[1] == 3
                else self.centre @ inputs.teacher[0][0, :3]
            )

    (line,) = check_plugin(Narrow, fast=True).broken
    assert line.startswith("loss 'Narrow': it-is-a-finite-scalar: ")
    assert "(of embeddings of 16 dimensions, and of 7: none that it takes)" in line


def test_a_loss_that_autocast_changes_is_noted() -> None:
    laws = laws_of(find_subject(broken.MultipliesInHalf, {}))
    (note,) = laws.notes()
    assert note.startswith("within an autocast to bf16 it has another value")
    assert list(laws_of(find_subject(broken.Sound, {})).notes()) == []
