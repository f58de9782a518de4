"""MoCo v3 as the engine drives it, against closed forms and the paper's rules."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from moco_setup import (
    BATCH,
    BN_HEAD,
    FACTS,
    LN_HEAD,
    STEPS,
    SmallNet,
    build,
    in_parts,
    learn,
    make_batch,
    method_slot,
    moco_v3,
    taught,
    train,
)
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Progress, RunFacts, ViewSpec
from sslkit.errors import RecipeError

FIRST = Progress(0, 1, 1)


def loss_of(temperature: float, query: Tensor, key: Tensor, **fields: Any) -> Tensor:
    loss = {"name": "info_nce", "temperature": temperature, "symmetric": False}
    method = moco_v3(loss=loss, **fields)
    output: Tensor = method.objective(
        {"query": query, "key": key}, make_batch(), Progress(0, 1, 1)
    ).loss
    return output


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.5, 0.2538560220859452), (0.1, 1.8159559686748214e-05), (1.0, 1.2530467500728915)],
)
def test_aligned_orthogonal_pair(temperature: float, expected: float) -> None:
    """4 tau ln(1 + exp(-1 / tau))."""
    rows = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 2, 2)
    assert loss_of(temperature, rows, rows).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("scaled", [True, False])
def test_loss_against_the_logits_written_out(temperature: float, scaled: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 7, 2, 4, dtype=torch.float64).unbind()
    expected = torch.zeros((), dtype=torch.float64)
    for view in (0, 1):
        q, k = F.normalize(query[:, view], dim=1), F.normalize(key[:, 1 - view], dim=1)
        expected += F.cross_entropy(q @ k.T / temperature, torch.arange(7))
    expected *= (2 * temperature if scaled else 1.0) * 3.0
    loss = loss_of(temperature, query, key, temperature_scaling=scaled, loss_weight=3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)


def test_only_queries_take_a_gradient() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 7, 2, 4).unbind()
    query.requires_grad_()
    key.requires_grad_()
    loss_of(0.2, query, key).backward()
    assert key.grad is None
    assert query.grad is not None
    assert query.grad.abs().min() > 0


# --- The teacher ----------------------------------------------------------------------------------


def test_teacher_after_three_steps() -> None:
    """m = 1 - (1 - m_0) (1 + cos(pi k / K)) / 2, and before step k it moves towards theta_k."""
    method = moco_v3(batch_norm=True, teacher_momentum={"name": "cosine", "start": 0.6, "end": 1.0})
    thetas = [taught(method)]
    thetas += [taught(method) for _ in train(method, range(3))]
    for i, found in enumerate(method.teacher.parameters()):
        expected = thetas[0][i]
        for k in range(3):
            momentum = 1 - 0.4 * (1 + math.cos(math.pi * k / STEPS)) / 2
            expected = momentum * expected + (1 - momentum) * thetas[k][i]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not all(torch.equal(a, b) for a, b in zip(thetas[0], thetas[2], strict=True))


def test_no_gradient_reaches_the_teacher() -> None:
    method, batch = moco_v3(batch_norm=True), make_batch()
    method.objective(method.embed(batch), batch, FIRST).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = [name for group in method.param_groups() for name, _ in group.params]
    assert trained
    assert all(name.startswith(("backbone.", "projector.", "predictor.")) for name in trained)


def test_each_view_has_its_own_batch_statistics() -> None:
    method = moco_v3(batch_norm=True, teacher_momentum=1.0)
    norm, conv = method.backbone.net[1], copy.deepcopy(method.backbone.net[0])
    own, expected = method.teacher.module[0].net[1], torch.zeros_like(norm.running_mean)
    for step, _ in enumerate(train(method, range(2)), start=1):
        for view in make_batch(step - 1).views:
            expected = 0.9 * expected + 0.1 * conv(view).mean(dim=(0, 2, 3)).detach()
        assert norm.num_batches_tracked == own.num_batches_tracked == 2 * step
        torch.testing.assert_close(own.running_mean, expected)
        assert torch.allclose(norm.running_mean, expected) == (step == 1)


# --- The engine's side ----------------------------------------------------------------------------


def test_shapes_and_the_encoder() -> None:
    method, batch = moco_v3(), make_batch()
    found = method.embed(batch)
    assert {name: value.shape[:2] for name, value in found.items()} == dict.fromkeys(
        ("features", "query", "key"), (BATCH, 2)
    )
    assert method.encoder is method.backbone
    query = method.predictor(method.projector(method.encoder(batch.views[1])))
    torch.testing.assert_close(found["query"][:, 1], query)


def test_the_projection_layers_are_the_projector_without_the_predictor() -> None:
    method, features = moco_v3(), torch.rand(BATCH, 6, dtype=torch.float64)
    assert len(method.projection_layers) == 2
    found = nn.Sequential(*method.projection_layers)(features)
    torch.testing.assert_close(found, method.projector(features), rtol=0, atol=0)


@pytest.mark.parametrize("part", [1, 5, 12])
def test_parts_and_the_whole_agree(part: int) -> None:
    method, batch = moco_v3(), make_batch()
    whole, parts = method.embed(batch), in_parts(method, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)
    loss = method.objective(parts, replace(batch, views=()), FIRST).loss
    torch.testing.assert_close(
        loss, method.objective(whole, batch, FIRST).loss, rtol=1e-12, atol=1e-14
    )


def test_state_dict_is_complete() -> None:
    straight, half, restored = (moco_v3(batch_norm=True) for _ in range(3))
    list(train(straight, range(4)))
    list(train(half, range(2)))
    restored.load_state_dict(half.state_dict())
    list(train(restored, range(2, 4)))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_it_learns() -> None:
    loss = {"name": "info_nce", "temperature": 0.2, "symmetric": False}
    chance = 2 * 2 * 0.2 * math.log(BATCH)
    assert learn(moco_v3(batch_norm=True, loss=loss, teacher_momentum=0.9)) < 0.6 * chance


def test_default_heads_are_those_of_the_resnet() -> None:
    method = build("moco_v3", SmallNet(True))
    for head, leaves in (
        (method.projector, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]),
        (method.predictor, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
    ):
        found = [m for m in head.layers.modules() if not list(m.children())]
        assert [type(m) for m in found] == leaves
        linear = [m for m in found if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear] == [4096, 256]
        assert all(m.bias is None for m in linear)
    assert not method.projector.layers[-1][1].affine
    assert method.config.temperature_scaling
    assert method.config.loss.config.temperature.at(None) == 1.0


# --- What is refused ------------------------------------------------------------------------------


def problems(facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("moco_v3", **fields)
    return list(slot.cls.problems(slot.config, facts))


def test_problems() -> None:
    assert problems() == []
    ((_, text),) = problems(replace(FACTS, views=(ViewSpec(8),)))
    assert text == "moco_v3 needs 2 views, but the augmentation makes 1"
    ((_, text),) = problems(replace(FACTS, batch_size=1))
    assert "batch_size >= 2" in text
    ((path, text),) = problems(loss={"name": "info_nce", "temperature": 0.2})
    assert path == "loss.symmetric"
    assert text.endswith("set it to false")
    ((path, text),) = problems(loss={"name": "normalized_mse"})
    assert (path, text) == (
        "temperature_scaling", "normalized_mse has no temperature: set it to false",
    )  # fmt: skip


def test_heads_that_do_not_fit() -> None:
    fields = {"projector": LN_HEAD, "predictor": {**BN_HEAD, "out_dim": 3}}
    with pytest.raises(RecipeError, match=r"method\.predictor: .* width 3 .* 4; set both"):
        method_slot("moco_v3", **fields).build(SmallNet(False), FACTS)
