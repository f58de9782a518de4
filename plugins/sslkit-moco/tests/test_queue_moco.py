"""MoCo v1 and v2 as the engine drives them, against closed forms and slow references."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from moco_setup import (
    BATCH,
    FACTS,
    LN_HEAD,
    STEPS,
    SmallNet,
    build,
    in_parts,
    learn,
    make_batch,
    method_slot,
    queue_moco,
    taught,
    train,
)
from sslkit_moco.queue_moco import ignores_negatives
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import ComponentConfig, Loss, LossInput, Progress, RunFacts, ViewSpec
from sslkit.nn.functional import nt_xent

FIRST = Progress(0, 1, 1)

BOTH = pytest.mark.parametrize("symmetric", [False, True])


def embeddings(query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """(B, D) queries and keys of one direction."""
    return {"query": query[:, None], "key": key[:, None]}


def reference_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The logits written out: own key first, then the queue; the label is 0."""
    query, key, queue = (F.normalize(rows, dim=1) for rows in (query, key, queue))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_key_equals_query_and_the_queue_is_orthogonal(temperature: float) -> None:
    moco = queue_moco(queue_size=7, loss={"name": "info_nce", "temperature": temperature})
    basis = torch.eye(4, dtype=torch.float64)
    moco.queue.features.copy_(basis[[1, 2, 3, 1, 2, 3, 1]])
    query = 5.0 * basis[:1].expand(3, -1)
    loss = moco.objective(embeddings(query, query), make_batch(), FIRST).loss
    assert loss.item() == pytest.approx(math.log1p(7 * math.exp(-1 / temperature)), rel=1e-12)


def test_chance() -> None:
    """Equal embeddings everywhere: ln(1 + K)."""
    moco, rows = queue_moco(queue_size=4095), torch.ones(2, 4, dtype=torch.float64)
    moco.queue.features.copy_(torch.full((4095, 4), 0.5))
    loss = moco.objective(embeddings(rows, rows), make_batch(), FIRST).loss
    assert loss.item() == pytest.approx(math.log(4096), rel=1e-12)
    assert loss.item() == pytest.approx(8.3178, abs=1e-4)


@BOTH
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_loss_is_the_sum_of_the_directions(symmetric: bool, weight: float) -> None:
    moco = queue_moco(symmetric=symmetric, loss_weight=weight)
    found = moco.embed(make_batch())
    loss = moco.objective(found, make_batch(), FIRST).loss
    expected = sum(
        reference_loss(found["query"][:, v], found["key"][:, v], moco.queue.features, 0.2)
        for v in range(2 if symmetric else 1)
    )
    torch.testing.assert_close(loss, weight * expected, rtol=1e-12, atol=0.0)


def test_a_query_meets_the_key_of_the_other_view() -> None:
    moco, batch = queue_moco(symmetric=True), make_batch()
    found = moco.embed(batch)
    for view in (0, 1):
        query = moco.head(moco.backbone(batch.views[view]))
        torch.testing.assert_close(found["query"][:, view], query)
        torch.testing.assert_close(found["key"][:, view], moco.teacher(batch.views[1 - view]))


def test_equals_lightly_step_by_step() -> None:
    """Loss and bank over steps that fit into the bank; where they do not, lightly cuts them off."""
    lightly = pytest.importorskip("lightly.loss")
    size, batch, dim = 20, 5, 4
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(size, dim))
    moco = queue_moco(queue_size=size).float()
    moco.queue.features.copy_(theirs.memory_bank.bank)
    for step in range(7):
        torch.manual_seed(step)
        query, key = torch.randn(2, batch, dim).unbind()
        output = moco.objective(
            embeddings(query.requires_grad_(), key), make_batch(), Progress(0, 1, 1)
        )
        torch.testing.assert_close(output.loss, theirs(query, key))
        moco.after_step(None, output.carry)
        torch.testing.assert_close(moco.queue.features, theirs.memory_bank.bank)


# --- The queue ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [1, 7, 12, 20, 31])
@pytest.mark.parametrize("batch", [4, 5, 11])
def test_queue_against_a_slow_reference(symmetric: bool, size: int, batch: int) -> None:
    """First in, first out, over batches that do not divide it and batches that exceed it."""
    facts = replace(FACTS, batch_size=batch)
    moco = queue_moco(symmetric=symmetric, queue_size=size, facts=facts)
    kept = [row.clone() for row in moco.queue.features]
    for output in train(moco, range(6), size=batch):
        kept = [*kept, *output.carry][-size:]
        assert len(output.carry) == batch * (2 if symmetric else 1)
        oldest_first = moco.queue.features.roll(-int(moco.queue.pointer), dims=0)
        assert torch.equal(oldest_first, torch.stack(kept))
    torch.testing.assert_close(
        moco.queue.features.norm(dim=1), torch.ones(size, dtype=torch.float64)
    )


@BOTH
def test_no_image_meets_its_own_key(symmetric: bool) -> None:
    """The queue that a loss sees holds no key of its batch, in neither direction; then all."""
    moco = queue_moco(symmetric=symmetric, queue_size=40)
    for step in range(3):
        batch, before = make_batch(step), moco.queue.features.clone()
        output = moco.objective(moco.embed(batch), batch, FIRST)
        assert torch.equal(moco.queue.features, before)
        assert (output.carry @ before.T).max() < 1 - 1e-9
        moco.after_step(None, output.carry)
        nearest = (output.carry @ moco.queue.features.T).amax(dim=1)
        torch.testing.assert_close(nearest, torch.ones_like(nearest))


# --- The teacher ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "momentum"),
    [
        ({"teacher_momentum": 0.7}, lambda k: 0.7),
        (
            {"teacher_momentum": {"name": "cosine", "start": 0.6, "end": 0.9}},
            lambda k: 0.9 - 0.3 * (1 + math.cos(math.pi * k / STEPS)) / 2,
        ),
    ],
)
def test_teacher_after_three_steps(fields: dict[str, Any], momentum: Any) -> None:
    """Before step k it moves towards theta_k, so after 3 steps it has seen theta_0 to theta_2."""
    moco = queue_moco(batch_norm=True, **fields)
    thetas = [taught(moco)]
    thetas += [taught(moco) for _ in train(moco, range(3))]
    for i, found in enumerate(moco.teacher.parameters()):
        expected = thetas[0][i]
        for k in range(3):
            expected = momentum(k) * expected + (1 - momentum(k)) * thetas[k][i]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not all(torch.equal(a, b) for a, b in zip(thetas[0], thetas[2], strict=True))


@BOTH
def test_no_gradient_reaches_teacher_or_queue(symmetric: bool) -> None:
    moco, batch = queue_moco(batch_norm=True, symmetric=symmetric), make_batch()
    found = moco.embed(batch)
    assert not found["key"].requires_grad
    found["key"].requires_grad_()
    moco.objective(found, batch, FIRST).loss.backward()
    assert found["key"].grad is None
    assert not moco.queue.features.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in moco.teacher.parameters())
    trained = [name for group in moco.param_groups() for name, _ in group.params]
    assert trained
    assert all(name.startswith(("backbone.", "head.")) for name in trained)
    for part in (moco.backbone, moco.head):
        assert all(p.grad is not None for p in part.parameters())


# --- The engine's side ----------------------------------------------------------------------------


@BOTH
def test_shapes_and_the_encoder(symmetric: bool) -> None:
    moco, directions = queue_moco(symmetric=symmetric), 2 if symmetric else 1
    found = moco.embed(make_batch())
    assert {name: value.shape[:2] for name, value in found.items()} == dict.fromkeys(
        ("features", "query", "key"), (BATCH, directions)
    )
    assert moco.encoder is moco.backbone


@BOTH
@pytest.mark.parametrize("part", [1, 5, 12])
def test_parts_and_the_whole_agree(symmetric: bool, part: int) -> None:
    moco, batch = queue_moco(symmetric=symmetric), make_batch()
    whole, parts = moco.embed(batch), in_parts(moco, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)
    output = moco.objective(parts, replace(batch, views=()), FIRST)
    expected = moco.objective(whole, batch, FIRST)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(output.carry, expected.carry, rtol=1e-12, atol=1e-14)


def test_state_changes_only_between_steps() -> None:
    moco, batch = queue_moco(), make_batch()
    before = {name: value.clone() for name, value in moco.state_dict().items()}
    moco.objective(moco.embed(batch), batch, FIRST).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in moco.state_dict().items())


@BOTH
def test_state_dict_is_complete(symmetric: bool) -> None:
    straight, half, restored = (queue_moco(True, symmetric=symmetric) for _ in range(3))
    list(train(straight, range(4)))
    list(train(half, range(2)))
    restored.load_state_dict(half.state_dict())
    assert {"queue.features", "queue.pointer"} <= restored.state_dict().keys()
    list(train(restored, range(2, 4)))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


@BOTH
def test_it_learns(symmetric: bool) -> None:
    head = {**LN_HEAD, "hidden_dim": 32, "out_dim": 16}
    moco = queue_moco(True, symmetric=symmetric, teacher_momentum=0.9, head=head, bn_groups=1)
    chance = (2 if symmetric else 1) * math.log(1 + 20)
    assert learn(moco) < 0.5 * chance


def test_v1_has_a_linear_head_and_v2_an_mlp() -> None:
    first, second = (build(name, SmallNet(True)) for name in ("moco_v1", "moco_v2"))
    assert [type(m) for m in first.head.layers.modules() if not list(m.children())] == [nn.Linear]
    leaves = [type(m) for m in second.head.layers.modules() if not list(m.children())]
    assert leaves == [nn.Linear, nn.ReLU, nn.Linear]
    for moco, temperature in ((first, 0.07), (second, 0.2)):
        assert moco.head.out_dim == 128
        assert all(m.bias is not None for m in moco.head.modules() if isinstance(m, nn.Linear))
        assert moco.config.loss.config.temperature.at(None) == temperature
        assert (len(moco.queue), moco.config.teacher_momentum.at(None), moco.config.symmetric) == (
            65536,
            0.999,
            False,
        )


# --- What is refused ------------------------------------------------------------------------------


def problems(facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("moco_v2", **{"queue_size": 20, "bn_groups": 3, **fields})
    return list(slot.cls.problems(slot.config, facts))


def test_problems() -> None:
    assert problems() == []
    ((path, text),) = problems(replace(FACTS, views=(ViewSpec(8),)))
    assert (path, text) == (
        "", "moco needs 2 views, a query and a key, but the augmentation makes 1",
    )  # fmt: skip
    ((path, text),) = problems(bn_groups=8)
    assert path == "bn_groups"
    assert text == "8 groups of 12 images have fewer than 2 each: set at most 6"
    ((path, text),) = problems(loss={"name": "nt_xent"})
    assert (path, text) == ("loss", "nt_xent makes no use of the queue: use info_nce")


def test_a_queue_of_an_epoch_is_warned_of() -> None:
    def warnings(**fields: Any) -> list[tuple[str, str]]:
        slot = method_slot("moco_v2", teacher_momentum=0.6, **fields)  # moves in few steps
        return list(slot.cls.warnings(slot.config, FACTS))

    ((path, text),) = warnings(queue_size=60)
    assert path == "queue_size"
    assert "(60) or more" in text
    assert warnings(queue_size=59) == []
    assert warnings(queue_size=60, symmetric=True) == []  # twice as many keys an epoch


def test_what_a_plan_states() -> None:
    for fields, groups in (({"bn_groups": 3}, {"BatchNorm groups": "3 of 4 images"}), ({}, {})):
        slot = method_slot("moco_v2", **{"bn_groups": 1, **fields})
        stated = {"negatives per anchor": 65536, **groups}
        assert slot.cls.plan_facts(slot.config, FACTS) == stated


class WithQueue(Loss):
    def forward(self, inputs: LossInput) -> Tensor:
        assert inputs.negatives is not None
        return inputs.negatives.square().mean() + inputs.views[0].sum()


class WithoutQueue(Loss):
    def forward(self, inputs: LossInput) -> Tensor:
        return nt_xent(*inputs.views, 0.5)


def test_what_ignores_a_queue() -> None:
    assert ignores_negatives(WithoutQueue(ComponentConfig()))
    assert not ignores_negatives(WithQueue(ComponentConfig()))


def test_the_projection_layers_are_the_head() -> None:
    method = build("moco_v2", SmallNet(False), bn_groups=1, queue_size=8)
    features = torch.rand(BATCH, 6, dtype=torch.float64)
    assert len(method.projection_layers) == 2
    found = nn.Sequential(*method.projection_layers)(features)
    torch.testing.assert_close(found, method.head(features), rtol=0, atol=0)
    linear = build("moco_v1", SmallNet(False), bn_groups=1, queue_size=8)
    assert len(linear.projection_layers) == 1
