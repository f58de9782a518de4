"""SwAV as the engine drives it, against closed forms, a slow reference and lightly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from cluster_setup import (
    BATCH,
    BN_HEAD,
    FACTS,
    LN_HEAD,
    SIDE,
    STEPS,
    SmallNet,
    build,
    in_parts,
    make_batch,
    method_slot,
    train,
)
from sslkit_cluster.swav import view_agreement
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Progress, RunFacts, ViewSpec
from sslkit.builtin.evaluators.branches import read_branches

FIRST = Progress(0, STEPS, 5)
CROPS = (ViewSpec(SIDE), ViewSpec(SIDE), *[ViewSpec(5, "local")] * 3)
K = 7


def swav(batch_norm: bool = False, views: Sequence[ViewSpec] = CROPS, **fields: Any) -> Any:
    head = BN_HEAD if batch_norm else LN_HEAD
    facts = replace(FACTS, views=tuple(views))
    small = {"projector": head, "num_prototypes": K, "freeze_prototypes_epochs": 0.4}
    return build("swav", facts, batch_norm=batch_norm, **{**small, **fields})


def slow_codes(scores: Tensor, epsilon: float) -> Tensor:
    """Three turns of rows and columns; (B, K)."""
    q = (scores.detach() / epsilon).exp()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True) / len(q)
    return q / q.sum(dim=1, keepdim=True)


class Slow:
    """SwAV by loops over crops and images, in the order of the reference code, with a list as its
    queue; 5 steps an epoch."""

    def __init__(self, method: Any, *, queue_size: int, start: int, frozen: int) -> None:
        self.method = copy.deepcopy(method)
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.queue_size, self.start, self.frozen = queue_size, start, frozen
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=0.3)

    def step(self, number: int, views: Sequence[Tensor]) -> Tensor:
        weight = self.method.prototypes.weight
        with torch.no_grad():
            for row in weight:
                row /= row.norm()
        z = [self.method.projector(self.method.backbone(view)) for view in views]
        z = [each / each.norm(dim=1, keepdim=True) for each in z]
        scores = [each @ weight.T for each in z]
        total = torch.zeros((), dtype=torch.float64)
        for crop in (0, 1):
            seen = scores[crop]
            if self.queue_size and len(self.queue) == self.queue_size:
                past = torch.stack([pair[crop] for pair in self.queue]) @ weight.T
                seen = torch.cat([past, seen])
            codes = slow_codes(seen, 0.05)[-len(z[0]) :]
            part = torch.zeros((), dtype=torch.float64)
            for other in range(len(views)):
                if other != crop:
                    for q, row in zip(codes, scores[other], strict=True):
                        part = part - (q * (row / 0.1).softmax(dim=0).log()).sum() / len(codes)
            total = total + part / (len(views) - 1)
        if self.queue_size and number >= self.start:
            pairs = list(zip(z[0].detach(), z[1].detach(), strict=True))
            self.queue = [*self.queue, *pairs][-self.queue_size :]
        loss = total / 2
        self.optimizer.zero_grad()
        loss.backward()
        if number < self.frozen:
            weight.grad = None
        self.optimizer.step()
        return loss.detach()


# --- Against the slow reference -------------------------------------------------------------------


@pytest.mark.parametrize("queue_size", [0, 20, 24])
def test_equals_the_slow_reference_over_steps(queue_size: int) -> None:
    """Losses and weights of nine steps: prototypes stand still for two, the queue fills from the
    third on and takes part from the fifth. One of 20 wraps around within a batch."""
    method = swav(queue_size=queue_size, queue_start_epoch=0.4)
    slow = Slow(method, queue_size=queue_size, start=2, frozen=2)
    for step, output in enumerate(train(method, range(9), views=CROPS)):
        expected = slow.step(step, make_batch(step, views=CROPS).views)
        torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-9, atol=0.0)
    for (name, a), b in zip(method.named_parameters(), slow.method.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_the_queue_takes_part() -> None:
    """From the fifth step on the losses differ from those without one."""
    with_queue, without = (
        [float(output.loss.detach()) for output in train(swav(**fields), range(7), views=CROPS)]
        for fields in ({"queue_size": 24, "queue_start_epoch": 0.4}, {})
    )
    assert with_queue[:4] == without[:4]
    assert with_queue[4] != without[4]


def test_prototypes_stand_still_and_have_unit_length() -> None:
    method = swav(freeze_prototypes_epochs=0.6)
    method.before_step(FIRST)
    start = method.prototypes.weight.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(K, dtype=torch.float64))
    for step, _ in enumerate(train(method, range(5), views=CROPS), start=1):
        method.before_step(Progress(step, STEPS, 5))
        weight = method.prototypes.weight.detach()
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(K, dtype=torch.float64))
        assert torch.allclose(weight, start, atol=1e-12) == (step <= 3)


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prototypes", "expected"), [(3000, 8.0064), (512, math.log(512))])
def test_starts_at_ln_k_where_all_scores_are_equal(prototypes: int, expected: float) -> None:
    method = swav(num_prototypes=prototypes)
    scores = torch.full((4, 5, prototypes), 0.2, dtype=torch.float64)
    found = {"scores": scores, "z": torch.zeros(4, 2, 4, dtype=torch.float64)}
    output = method.objective(found, make_batch(size=4), FIRST)
    assert output.loss.item() == pytest.approx(math.log(prototypes), rel=1e-12)
    assert output.loss.item() == pytest.approx(expected, abs=5e-5)
    assert float(output.metrics["code_entropy"]) == pytest.approx(math.log(prototypes), rel=1e-9)


def test_certain_codes_that_all_views_predict() -> None:
    """Image b at prototype b with cosine 1, at right angles to the others: codes are one-hot to
    1e-8, and the loss is ln(1 + (K - 1) e^-10)."""
    method = swav(num_prototypes=4)
    scores = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 5, 4)
    found = {"scores": scores, "z": torch.zeros(4, 2, 4, dtype=torch.float64)}
    output = method.objective(found, make_batch(size=4), FIRST)
    assert output.loss.item() == pytest.approx(math.log1p(3 * math.exp(-10)), rel=1e-3)
    assert output.metrics["prototypes_in_use"] == 1.0


@pytest.mark.parametrize("crops", [(2, 0), (2, 3), (1, 2)])
@pytest.mark.parametrize("queue", [False, True])
def test_equals_lightly(crops: tuple[int, int], queue: bool) -> None:
    """Value and gradient of its loss, over the same scores, with the scores of a queue."""
    lightly = pytest.importorskip("lightly.loss")
    views = (*[ViewSpec(8)] * crops[0], *[ViewSpec(5, "local")] * crops[1])
    method = swav(views=views, queue_size=30 if queue else 0).float()
    method.before_step(FIRST)
    z = F.normalize(
        torch.randn(6, len(views), 4, generator=torch.Generator().manual_seed(0)), dim=2
    )
    scores = (z @ method.prototypes.weight.detach().T).requires_grad_()
    past = None
    if queue:
        rows = F.normalize(torch.randn(30, crops[0], 4), dim=2)
        method.queue.push(rows.flatten(1))
        past = [each @ method.prototypes.weight.detach().T for each in rows.unbind(1)]
    found = {"scores": scores, "z": z[:, : crops[0]]}
    loss = method.objective(found, make_batch(size=6), FIRST).loss
    by_view = scores.unbind(dim=1)
    theirs = lightly.SwaVLoss()(list(by_view[: crops[0]]), list(by_view[crops[0] :]), past)
    torch.testing.assert_close(loss, theirs[0], rtol=1e-4, atol=1e-5)
    mine, expected = torch.autograd.grad(loss, scores)[0], torch.autograd.grad(theirs, scores)[0]
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("field", ["temperature", "epsilon"])
def test_temperatures_follow_their_schedule(field: str) -> None:
    """Half of the way from 0.2 to 0.1."""
    moving = swav(**{field: {"name": "linear", "start": 0.2, "end": 0.1}})
    still = swav(**{field: 0.15})
    found, half = still.embed(make_batch(views=CROPS)), Progress(STEPS // 2, STEPS, 5)
    losses = [method.objective(found, make_batch(), half).loss for method in (moving, still)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0.0)
    assert moving.objective(found, make_batch(), FIRST).loss != losses[1]


def test_codes_send_no_gradient() -> None:
    """The gradient of the scores is (softmax - code) / (0.1 B), a mean over the codes of the other
    global views."""
    method = swav()
    found = method.embed(make_batch(views=CROPS))
    scores = found["scores"].detach().requires_grad_()
    output = method.objective({**found, "scores": scores}, make_batch(), FIRST)
    (gradient,) = torch.autograd.grad(output.loss, scores)
    codes = [slow_codes(scores[:, view], 0.05) for view in (0, 1)]
    for view in range(5):
        expected = sum(
            (scores[:, view] / 0.1).softmax(dim=1) - codes[other]
            for other in (0, 1)
            if other != view
        )
        expected = expected / (0.1 * BATCH * 2 * 4)
        torch.testing.assert_close(gradient[:, view], expected, rtol=1e-8, atol=1e-12)


# --- What keeps a run at ln K ---------------------------------------------------------------------


def small_scores(agreement: float, images: int = 400, prototypes: int = 7) -> tuple[Tensor, Tensor]:
    """Scores of two views, a hundredth of epsilon apart, that agree so much."""
    generator = torch.Generator().manual_seed(0)
    shape = images, prototypes
    one, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    other = agreement * one + math.sqrt(1.0 - agreement**2) * noise
    return 5e-4 * one, 5e-4 * other


def test_view_agreement() -> None:
    one, other = small_scores(0.4)
    assert view_agreement(one, one).item() == pytest.approx(1.0)
    assert view_agreement(one, -3.0 * one).item() == pytest.approx(-1.0)
    assert view_agreement(one, other).item() == pytest.approx(0.4, abs=0.03)
    common = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64) + torch.ones(400, 1).double()
    assert view_agreement(one + common, other + common).item() == pytest.approx(
        view_agreement(one, other).item(), abs=1e-9
    )
    assert view_agreement(torch.ones(3, 7), torch.rand(3, 7)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.03])
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_small_scores_grow_where_views_agree_more_than_epsilon_over_temperature(
    epsilon: float, factor: float
) -> None:
    """The loss falls with the length of the scores above epsilon / 0.1, and rises with it below."""
    method = swav(views=CROPS[:2], epsilon=epsilon)
    one, other = small_scores(factor * epsilon / 0.1)
    length = torch.ones((), dtype=torch.float64, requires_grad=True)
    # The means over images have settled: Sinkhorn takes them off the codes, not the predictions.
    scores = torch.stack([each - each.mean(dim=0) for each in (one, other)], dim=1)
    found = {"scores": length * scores, "z": torch.zeros(400, 2, 4, dtype=torch.float64)}
    output = method.objective(found, make_batch(size=400), FIRST)
    (slope,) = torch.autograd.grad(output.loss, length)
    agreement = float(output.metrics["view_agreement"])
    # To second order in s: mean s^2 (1 - agreement temperature / epsilon) / temperature^2.
    expected = (scores - scores.mean(-1, keepdim=True)).square().mean() / 0.01
    expected = expected * (1.0 - agreement * 0.1 / epsilon)
    torch.testing.assert_close(slope, expected, rtol=0.05, atol=0.0)
    assert (slope < 0.0) == (factor > 1.0)


# --- The engine's side ----------------------------------------------------------------------------


def test_shapes_and_passes() -> None:
    """Views of one size pass the backbone together, and all of them the projector."""
    method, batch = swav(batch_norm=True), make_batch(views=CROPS)
    norm, hidden = method.backbone.net[1], method.projector.layers[0][1]
    found = method.embed(batch)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "features": (BATCH, 2, 6), "z": (BATCH, 2, 4), "scores": (BATCH, 5, K),
        "shares": (BATCH, 2, K),
    }  # fmt: skip
    assert norm.num_batches_tracked == 2
    assert hidden.num_batches_tracked == 1
    torch.testing.assert_close(found["z"].norm(dim=2), torch.ones(BATCH, 2, dtype=torch.float64))


def test_views_keep_their_order() -> None:
    method, batch = swav(), make_batch(views=CROPS)
    found = method.embed(batch)
    for number, view in enumerate(batch.views):
        z = F.normalize(method.projector(method.backbone(view)), dim=1)
        torch.testing.assert_close(found["scores"][:, number], z @ method.prototypes.weight.T)


def test_scores_are_float32_under_autocast() -> None:
    method = swav().float()
    batch = make_batch(views=CROPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.embed(replace(batch, views=tuple(view.float() for view in batch.views)))
    assert found["scores"].dtype == torch.float32
    expected = found["z"][:, 0] @ method.prototypes.weight.T
    torch.testing.assert_close(found["scores"][:, 0], expected)


@pytest.mark.parametrize("part", [1, 5, 12])
def test_parts_and_the_whole_agree(part: int) -> None:
    method, batch = swav(), make_batch(views=CROPS)
    whole, parts = method.embed(batch), in_parts(method, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_state_dict_is_complete() -> None:
    straight, half, restored = (swav(queue_size=24, queue_start_epoch=0.0) for _ in range(3))
    list(train(straight, range(6), views=CROPS))
    list(train(half, range(3), views=CROPS))
    restored.load_state_dict(half.state_dict())
    list(train(restored, range(3, 6), views=CROPS))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_the_default_head_is_the_reference_codes() -> None:
    method: Any = method_slot("swav").build(SmallNet(True), replace(FACTS, views=CROPS))
    leaves = [m for m in method.projector.layers.modules() if not list(m.children())]
    assert [type(m) for m in leaves] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [m.bias is not None for m in leaves if isinstance(m, nn.Linear)] == [True, True]
    assert method.prototypes.weight.shape == (3000, 128)
    assert method.prototypes.bias is None
    assert method.queue is None
    assert nn.Sequential(*method.projection_layers)(torch.rand(3, 6)).shape == (3, 128)


def test_uniform_codes_are_seen_where_the_highest_scores_still_differ() -> None:
    """As in runs that are stuck at ln K: scores a thousandth apart, each image another highest."""
    method, batch = swav(), make_batch(views=CROPS)
    healthy = method.embed(batch)["shares"]
    torch.testing.assert_close(healthy.sum(dim=2), torch.ones(BATCH, 2, dtype=torch.float64))
    with torch.no_grad():
        method.prototypes.weight.mul_(1e-3)
    stuck = method.embed(batch)
    judged = {branch.name: branch for branch in read_branches(stuck, method.must_not_collapse)[1]}
    assert min(judged["shares"].spread) < 0.05
    before = read_branches({"shares": healthy}, {"shares": "prototypes"})[1][0]
    assert min(judged["shares"].spread) < 0.3 * min(before.spread)


# --- What is refused and warned of ----------------------------------------------------------------


def said(what: str, facts: RunFacts, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("swav", **fields)
    return list(getattr(slot.cls, what)(slot.config, facts))


def test_problems() -> None:
    facts = replace(FACTS, views=CROPS)
    assert said("problems", facts) == []
    for views, named in ((CROPS[2:], "local, local, local"), (CROPS[:1], "global")):
        ((_, text),) = said("problems", replace(FACTS, views=views))
        assert text.endswith(f"the views are {named}")
    ((_, text),) = said("problems", replace(facts, batch_size=1))
    assert "batch_size >= 2" in text


def test_warnings() -> None:
    facts = replace(FACTS, views=CROPS)
    small = {"num_prototypes": 12, "freeze_prototypes_epochs": 1.0}
    assert said("warnings", facts, **small) == []
    ((path, text),) = said("warnings", facts, **{**small, "num_prototypes": 40})
    assert path == "queue_size"
    assert "set 28 or more" in text
    ((path, text),) = said("warnings", facts, **{**small, "epsilon": 0.1})
    assert path == "epsilon"
    assert "no harder than predictions" in text
    falling = {
        field: {"name": "linear", "start": start, "end": end, "epochs": 1.0}
        for field, start, end in (("temperature", 0.5, 0.1), ("epsilon", 0.3, 0.01))
    }
    assert said("warnings", facts, **small, **falling) == []  # lower at each step
    ((path, _),) = said("warnings", facts, **{**small, **falling, "epsilon": 0.2})
    assert path == "epsilon"
    ((path, _),) = said("warnings", facts, **{**small, "freeze_prototypes_epochs": 2.0})
    assert path == "freeze_prototypes_epochs"
    ((path, _),) = said("warnings", facts, **small, queue_size=20, queue_start_epoch=2.0)
    assert path == "queue_start_epoch"
