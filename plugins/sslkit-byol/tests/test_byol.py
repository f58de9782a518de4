"""BYOL as the engine drives it, against closed forms and the paper's rules."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byol_setup import (
    BATCH,
    BN_HEAD,
    FACTS,
    LN_HEAD,
    STEPS,
    SmallNet,
    in_parts,
    learnable_batch,
    make_batch,
    make_byol,
    method_slot,
    train,
)
from sslkit_byol.losses import normalized_mse
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import LossInput, Progress, RunFacts, ViewSpec, resolve_component
from sslkit.engine.step_metrics import loss_metrics
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.workflows.validate import validate

FIRST = Progress(0, 1, 1)


def embeddings(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The same (B, D) prediction and target for both views."""
    return {
        "prediction": torch.stack([prediction, prediction], dim=1),
        "target": torch.stack([target, target], dim=1),
    }


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [([[2.0, 0.0]], 0.0), ([[0.0, 0.5]], 4.0), ([[-3.0, 0.0]], 8.0), ([[1.0, 1.0]], 4 - 8**0.5)],
)
def test_closed_forms(target: list[list[float]], expected: float) -> None:
    prediction = torch.tensor([[7.0, 0.0]], dtype=torch.float64)
    found = embeddings(prediction, torch.tensor(target, dtype=torch.float64))
    for weight in (1.0, 0.25):
        loss = make_byol(loss_weight=weight).objective(found, make_batch(), FIRST).loss
        assert loss.item() == pytest.approx(weight * expected, abs=1e-12)


def test_each_view_predicts_the_other() -> None:
    torch.manual_seed(1)
    p, z = torch.randn(2, 5, 2, 4, dtype=torch.float64).unbind()
    loss = make_byol().objective({"prediction": p, "target": z}, make_batch(), FIRST).loss
    expected = sum(
        (2 - 2 * F.cosine_similarity(p[:, view], z[:, 1 - view])).mean() for view in (0, 1)
    )
    torch.testing.assert_close(loss, expected)


def test_random_embeddings_lose_about_four() -> None:
    torch.manual_seed(2)
    p, z = torch.randn(2, 4000, 2, 64).unbind()
    loss = make_byol().objective({"prediction": p, "target": z}, make_batch(), FIRST).loss
    assert loss.item() == pytest.approx(4.0, abs=0.05)


def test_equals_lightly_up_to_a_constant() -> None:
    lightly = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    torch.manual_seed(3)
    p, z = torch.randn(2, 6, 2, 8).unbind()
    theirs = 0.5 * (lightly(p[:, 0], z[:, 1]) + lightly(p[:, 1], z[:, 0]))
    ours = (
        make_byol(loss_weight=0.25)
        .objective({"prediction": p, "target": z}, make_batch(), FIRST)
        .loss
    )
    torch.testing.assert_close(ours, 1.0 + theirs)


def test_zero_rows_and_half_precision_are_finite() -> None:
    p = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = normalized_mse(p, torch.randn(3, 4))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 2.0
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, D\), not \(2, 3\) and \(2, 4\)"):
        normalized_mse(torch.ones(2, 3), torch.ones(2, 4))
    loss = resolve_component(load_plugins().registry, "loss", {"name": "normalized_mse"}).build()
    with pytest.raises(ValueError, match=r"compares 2 embeddings, not 3: set another method\.loss"):
        loss(LossInput((torch.ones(2, 3),) * 3))


def test_three_views_of_another_method_are_refused_before_the_run(tmp_path: Path) -> None:
    recipe = tmp_path / "three.yaml"
    recipe.write_text(
        "name: three\ndata: {name: synthetic}\n"
        "augmentation: {name: simclr, size: 16, num_views: 3}\n"
        "backbone: {name: timm, model: test_resnet}\n"
        "method:\n  name: simclr\n  loss: {name: normalized_mse}\n"
        "optimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\n"
        "train: {epochs: 1, batch_size: 16}\n"
    )
    (problem,) = validate(recipe, ()).problems
    assert problem.startswith(f"{recipe}:7:9: method.loss: normalized_mse takes 2 views, and this")
    assert validate(recipe, ["augmentation.num_views=2"]).problems == ()


def test_another_loss_in_the_slot() -> None:
    byol = make_byol(loss={"name": "info_nce", "temperature": 0.2, "symmetric": False})
    output = byol.objective(byol.embed(make_batch()), make_batch(), FIRST)
    assert output.loss.isfinite()
    assert set(output.metrics) == {"target_std"}
    assert "contrastive_top1" in loss_metrics(byol, output)


# --- The teacher ----------------------------------------------------------------------------------


def taught(byol: Any) -> list[Tensor]:
    return [p.detach().clone() for p in byol.taught.parameters()]


@pytest.mark.parametrize(
    ("fields", "momentum"),
    [
        (
            {"teacher_momentum": {"name": "cosine", "start": 0.6, "end": 1.0}},
            lambda k: 1 - (1 - 0.6) * (math.cos(math.pi * k / STEPS) + 1) / 2,
        ),
        ({"teacher_momentum": 0.7}, lambda k: 0.7),
    ],
)
def test_teacher_after_three_steps(fields: dict[str, Any], momentum: Any) -> None:
    """xi_3 = m_2 m_1 m_0 xi_0 + sum of (1 - m_k) theta_(k+1) times the later momenta."""
    byol = make_byol(batch_norm=True, **fields)
    start = taught(byol)
    after = [taught(byol) for _ in train(byol, range(3))]
    m = [momentum(k) for k in range(3)]
    weights = [(1 - m[0]) * m[1] * m[2], (1 - m[1]) * m[2], 1 - m[2]]
    for i, found in enumerate(byol.teacher.parameters()):
        expected = m[0] * m[1] * m[2] * start[i]
        expected += sum(w * after[k][i] for k, w in enumerate(weights))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not all(torch.equal(a, b) for a, b in zip(start, after[-1], strict=True))


def test_momentum_goes_from_start_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    momentum = {"name": "cosine", "start": 0.9, "end": 1.0}
    byol, used = make_byol(teacher_momentum=momentum), []
    monkeypatch.setattr(byol.teacher, "update", lambda online, momentum: used.append(momentum))
    list(train(byol, range(STEPS)))
    assert used[0] == pytest.approx(0.9)
    assert used == sorted(used)
    assert used[-1] < 1.0


def test_the_teacher_is_not_trained_and_passes_no_gradient() -> None:
    byol, batch = make_byol(batch_norm=True), make_batch()
    found = byol.embed(batch)
    assert not found["target"].requires_grad
    found["target"].requires_grad_()
    byol.objective(found, batch, FIRST).loss.backward()
    assert found["target"].grad is None
    assert all(p.grad is None and not p.requires_grad for p in byol.teacher.parameters())
    trained = [name for group in byol.param_groups() for name, _ in group.params]
    assert not any(name.startswith("teacher") for name in trained)
    for part in (byol.backbone, byol.projector, byol.predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_predictor_has_no_teacher() -> None:
    names = {name.split(".")[2] for name, _ in make_byol().teacher.named_parameters(prefix="t")}
    assert names == {"0", "1"}  # encoder and projector


def test_the_projection_layers_are_the_projector_without_the_predictor() -> None:
    byol, features = make_byol(), torch.rand(BATCH, 6, dtype=torch.float64)
    assert len(byol.projection_layers) == 2
    found = nn.Sequential(*byol.projection_layers)(features)
    torch.testing.assert_close(found, byol.projector(features), rtol=0, atol=0)


def test_each_view_has_its_own_batch_statistics() -> None:
    """Two passes a step of the online network and two of the teacher, whose statistics are its
    own: here those of its first weights, which momentum 1 keeps."""
    byol = make_byol(batch_norm=True, teacher_momentum=1.0)
    norm, conv = byol.backbone.net[1], copy.deepcopy(byol.backbone.net[0])
    own, expected = byol.teacher.module[0].net[1], torch.zeros_like(norm.running_mean)
    for step, _ in enumerate(train(byol, range(2)), start=1):
        for view in make_batch(step - 1).views:
            expected = 0.9 * expected + 0.1 * conv(view).mean(dim=(0, 2, 3)).detach()
        assert norm.num_batches_tracked == own.num_batches_tracked == 2 * step
        torch.testing.assert_close(own.running_mean, expected)
        assert torch.allclose(norm.running_mean, expected) == (step == 1)


# --- The engine's side ----------------------------------------------------------------------------


def test_embeddings_have_one_row_per_image() -> None:
    byol, batch = make_byol(), make_batch()
    found = byol.embed(batch)
    assert {name: value.shape[:2] for name, value in found.items()} == dict.fromkeys(
        ("features", "prediction", "target"), (BATCH, 2)
    )
    torch.testing.assert_close(found["features"][:, 1], byol.encoder(batch.views[1]))
    assert byol.encoder is byol.backbone


@pytest.mark.parametrize("part", [1, 5, 12])
def test_parts_and_the_whole_agree(part: int) -> None:
    byol, batch = make_byol(), make_batch()
    whole, parts = byol.embed(batch), in_parts(byol, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)
    loss = byol.objective(parts, replace(batch, views=()), FIRST).loss
    torch.testing.assert_close(
        loss, byol.objective(whole, batch, FIRST).loss, rtol=1e-12, atol=1e-14
    )


def test_state_changes_only_between_steps() -> None:
    byol, batch = make_byol(), make_batch()
    before = {name: value.clone() for name, value in byol.state_dict().items()}
    byol.objective(byol.embed(batch), batch, FIRST).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in byol.state_dict().items())


def test_state_dict_is_complete() -> None:
    straight, half, restored = (make_byol(batch_norm=True) for _ in range(3))
    list(train(straight, range(4)))
    list(train(half, range(2)))
    restored.load_state_dict(half.state_dict())
    list(train(restored, range(2, 4)))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    byol, batch = make_byol(teacher_momentum=0.9), learnable_batch()
    losses = [output.loss.item() for output in train(byol, range(40), 40, batch)]
    assert losses[-1] < 0.1 * losses[0]


# --- What is refused ------------------------------------------------------------------------------


def problems(facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot(**fields)
    return list(slot.cls.problems(slot.config, facts))


def test_problems() -> None:
    assert problems() == []
    ((path, text),) = problems(replace(FACTS, views=(ViewSpec(8),) * 3))
    assert (path, text) == ("", "byol needs 2 views, but the augmentation makes 3")
    ((_, text),) = problems(replace(FACTS, batch_size=1))
    assert "batch_size >= 2" in text


def test_heads_that_do_not_fit() -> None:
    fields = {"projector": LN_HEAD, "predictor": {**BN_HEAD, "out_dim": 3}}
    with pytest.raises(RecipeError, match=r"method\.predictor: .* width 3 .* 4; set both"):
        method_slot(**fields).build(SmallNet(False), FACTS)
