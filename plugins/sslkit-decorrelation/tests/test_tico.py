"""TiCo against closed values, the formula in loops, lightly, and what public code gets wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decorrelation_setup import (
    BATCH,
    FACTS,
    FIRST,
    HEAD,
    draw,
    make_batch,
    make_method,
    method_slot,
    take_steps,
)
from torch import Tensor

from sslkit.api import RunFacts, ViewSpec

Rows = list[list[Tensor]]


def unit_rows(z: Tensor) -> Rows:
    rows = []
    for row in z:
        length = sum(x * x for x in row) ** 0.5
        rows.append([x / length for x in row])
    return rows


def in_loops(z: Tensor, target: Tensor, before: Rows, rho: float) -> tuple[Tensor, Rows]:
    """Zhu et al. 2022, number by number: the loss, and the covariance that it has left."""
    a, b = unit_rows(z), unit_rows(target)
    count, width = len(a), len(a[0])
    c = [
        [
            0.9 * before[i][j] + 0.1 * sum(row[i].detach() * row[j].detach() for row in a) / count
            for j in range(width)
        ]
        for i in range(width)
    ]
    loss = torch.ones((), dtype=torch.float64)
    for n in range(count):
        for i in range(width):
            loss = loss - a[n][i] * b[n][i] / count
            for j in range(width):
                loss = loss + rho / count * a[n][i] * c[i][j] * a[n][j]
    return loss, c


def loss_of(method: Any, z: Tensor, target: Tensor) -> Tensor:
    """The loss of projections (B, D), and the step after it."""
    embeddings = {"z": z[:, None], "target": target[:, None]}
    output = method.objective(embeddings, make_batch(), FIRST)
    with torch.no_grad():
        method.after_step(FIRST.next(), output.carry)
    found: Tensor = output.loss
    return found


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "images"), [(4, 1), (4, 2), (4, 4)])
def test_embeddings_along_so_many_axes(width: int, images: int) -> None:
    """rho (1 - beta^t) / k in step t, where views agree and lie evenly along k axes: 0.8 at first
    and 8 in the end at a collapse, with rho 8 and beta 0.9."""
    method = make_method("tico", projector={**HEAD, "out_dim": width})
    z = 3.0 * torch.eye(width, dtype=torch.float64)[:images].repeat(2, 1)
    for step in range(1, 5):
        expected = 8.0 * (1 - 0.9**step) / images
        assert loss_of(method, z, 0.5 * z).item() == pytest.approx(expected, rel=1e-12)
    for _ in range(300):
        loss_of(method, z, z)
    assert loss_of(method, z, z).item() == pytest.approx(8.0 / images, rel=1e-10)


def test_value_gradient_and_covariance_in_loops() -> None:
    method = make_method("tico", covariance_weight=5.0, loss_weight=2.0)
    before: Rows = [[torch.zeros((), dtype=torch.float64)] * 4 for _ in range(4)]
    for step in range(3):
        z, target = draw(5, 4, seed=step).requires_grad_(), draw(5, 4, seed=10 + step)
        ours = loss_of(method, z, target)
        theirs, before = in_loops(z, target, before, 5.0)
        torch.testing.assert_close(ours, 2.0 * theirs, rtol=1e-12, atol=0)
        gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, 2.0 * theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
        covariance = torch.stack([torch.stack(row) for row in before])
        torch.testing.assert_close(method.covariance, covariance, rtol=1e-12, atol=0)


def test_steps_in_loops() -> None:
    """Three steps of the networks, of the teacher, which moves before each, and of the state."""
    momenta = (0.6, 0.6, 0.6)
    method = make_method("tico", teacher_momentum=momenta[0])
    online = torch.nn.Sequential(copy.deepcopy(method.backbone), copy.deepcopy(method.projector))
    teacher = copy.deepcopy(online)
    before: Rows = [[torch.zeros((), dtype=torch.float64)] * 4 for _ in range(4)]
    losses = []
    for step, momentum in enumerate(momenta):
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), online.parameters(), strict=True):
                slow.copy_(momentum * slow + (1 - momentum) * fast)
        first, second = make_batch(step).views
        loss, before = in_loops(online(first), teacher(second).detach(), before, 8.0)
        online.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in online.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]
        losses.append(loss.item())
    assert take_steps(method, 3) == pytest.approx(losses, rel=1e-9)
    covariance = torch.stack([torch.stack(row) for row in before])
    torch.testing.assert_close(method.covariance, covariance, rtol=1e-9, atol=1e-12)
    for ours, theirs in ((method.taught, online), (method.teacher.module, teacher)):
        state = theirs.state_dict()
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-8, atol=1e-11)


def test_equals_lightly_given_the_online_view_first() -> None:
    lightly = pytest.importorskip("lightly.loss.tico_loss").TiCoLoss()
    method = make_method("tico")
    for step in range(3):
        z, target = draw(12, 4, seed=step).requires_grad_(), draw(12, 4, seed=10 + step)
        ours, theirs = loss_of(method, z, target), lightly(z, target)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(method.covariance, lightly.C)


# --- What public code gets wrong ------------------------------------------------------------------


def test_the_covariance_term_trains_the_online_network() -> None:
    """With the teacher's projections in its place, as in lightly's benchmark, it has no gradient
    at all."""
    method, batch = make_method("tico"), make_batch()
    gradients = []
    for weight in (0.0, 8.0):
        method.config = method.config.model_copy(update={"covariance_weight": weight})
        loss = method.objective(method.embed(batch), batch, FIRST).loss
        gradients.append(torch.autograd.grad(loss, method.backbone.net[0].weight)[0])
    assert (gradients[1] - gradients[0]).norm() > 0.1 * gradients[0].norm()
    lightly = pytest.importorskip("lightly.loss.tico_loss")
    found = []
    for rho in (0.0, 8.0):
        z = draw(12, 4).requires_grad_()
        loss = lightly.TiCoLoss(rho=rho)(draw(12, 4, seed=1), z)  # the teacher first
        found.append(torch.autograd.grad(loss, z)[0])
    assert torch.equal(*found)


def test_the_covariance_is_state_that_a_step_alone_changes() -> None:
    method, batch = make_method("tico"), make_batch()
    before = copy.deepcopy(method.state_dict())
    assert not before["covariance"].any()
    for _ in range(2):
        output = method.objective(method.embed(batch), batch, FIRST)
    assert torch.equal(method.covariance, before["covariance"])
    method.after_step(FIRST.next(), output.carry)
    assert float(method.covariance.diagonal().sum()) == pytest.approx(0.1)  # of unit vectors
    assert not output.carry.requires_grad


def test_training_goes_on_after_a_stop() -> None:
    whole, first, second = (make_method("tico") for _ in range(3))
    losses = take_steps(whole, 4)
    assert take_steps(first, 2) == losses[:2]
    second.load_state_dict(first.state_dict())
    assert take_steps(second, 4, start=2) == losses[2:]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


# --- The method -----------------------------------------------------------------------------------


def test_the_teacher_sees_the_second_view_without_gradient() -> None:
    method, batch = make_method("tico"), make_batch()
    found = method.embed(batch)
    features = method.backbone(batch.views[0])
    torch.testing.assert_close(found["features"][:, 0], features)
    torch.testing.assert_close(found["z"][:, 0], method.projector(features))
    torch.testing.assert_close(found["target"][:, 0], method.teacher(batch.views[1]))
    assert found["z"].shape == (BATCH, 1, 4)
    assert not found["target"].requires_grad
    trained = {name for group in method.param_groups() for name, _ in group.params}
    assert not any(name.startswith("teacher") for name in trained)


def test_the_teacher_follows_its_schedule() -> None:
    """The momentum of the coming step, before it, towards the weights that the step before has
    left: in the third of five steps of a cosine from 0.5 to 1."""
    method = make_method("tico", teacher_momentum={"name": "cosine", "start": 0.5, "end": 1.0})
    with torch.no_grad():
        for parameter in method.taught.parameters():
            parameter += 1.0
    method.before_step(replace(FIRST, step=2))
    momentum = 1.0 - 0.25 * (1.0 + math.cos(math.pi * 2 / 5))
    weight, online = method.teacher.module[0].net[0].weight, method.backbone.net[0].weight
    torch.testing.assert_close(weight, online - momentum)


def said_of(kind: str, facts: RunFacts = FACTS, **fields: Any) -> Sequence[tuple[str, str]]:
    slot = method_slot("tico", **fields)
    return list(getattr(slot.cls, kind)(slot.config, facts))


def test_problems_and_warnings() -> None:
    facts = replace(FACTS, total_steps=1000)
    assert said_of("problems") == []
    assert said_of("warnings", facts) == []
    ((_, text),) = said_of("problems", replace(FACTS, views=(ViewSpec(8),) * 3))
    assert text == "tico needs 2 views, but the augmentation makes 3"
    ((_, text),) = said_of("problems", replace(FACTS, batch_size=1))
    assert "train.batch_size >= 2" in text
    ((path, text),) = said_of("warnings", facts, covariance_weight=0.0)
    assert path == "covariance_weight"
    assert "training will collapse" in text
    ((path, text),) = said_of("warnings", facts, teacher_momentum=1.0)
    assert path == "teacher_momentum"
    assert "never moves" in text
