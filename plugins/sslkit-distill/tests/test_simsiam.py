"""SimSiam as the engine drives it, against closed forms, the paper's rules and other code."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_setup import (
    BATCH,
    BN_HEAD,
    FACTS,
    LN_HEAD,
    SIDE,
    SmallNet,
    in_parts,
    make_batch,
    make_method,
    make_simsiam,
    method_slot,
    problems,
    train,
)
from sslkit_distill.feature_losses import negative_cosine
from torch import Tensor, nn

from sslkit.api import LossInput, Progress, RunFacts, Schedule, ViewSpec, resolve_component
from sslkit.engine.optimization import Optimization
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
    [([[2.0, 0.0]], -1.0), ([[0.0, 0.5]], 0.0), ([[-3.0, 0.0]], 1.0), ([[1.0, 1.0]], -(0.5**0.5))],
)
def test_closed_forms(target: list[list[float]], expected: float) -> None:
    prediction = torch.tensor([[7.0, 0.0]], dtype=torch.float64)
    found = embeddings(prediction, torch.tensor(target, dtype=torch.float64))
    loss = make_simsiam().objective(found, make_batch(), FIRST).loss
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_each_view_predicts_the_other_as_lightly_does() -> None:
    lightly = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    torch.manual_seed(1)
    p, z = torch.randn(2, 5, 2, 4, dtype=torch.float64).unbind()
    loss = make_simsiam().objective({"prediction": p, "target": z}, make_batch(), FIRST).loss
    theirs = 0.5 * (lightly(p[:, 0], z[:, 1]) + lightly(p[:, 1], z[:, 0]))
    torch.testing.assert_close(loss, theirs, rtol=1e-12, atol=1e-14)


def test_zero_rows_and_half_precision_are_finite() -> None:
    p = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = negative_cosine(p, torch.randn(3, 4))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, D\), not \(2, 3\) and \(2, 4\)"):
        negative_cosine(torch.ones(2, 3), torch.ones(2, 4))
    loss = resolve_component(load_plugins().registry, "loss", {"name": "negative_cosine"}).build()
    with pytest.raises(ValueError, match=r"compares 2 embeddings, not 3: set another method\.loss"):
        loss(LossInput((torch.ones(2, 3),) * 3))


def test_three_views_of_another_method_are_refused_before_the_run(tmp_path: Path) -> None:
    recipe = tmp_path / "three.yaml"
    recipe.write_text(
        "name: three\ndata: {name: synthetic}\n"
        "augmentation: {name: simclr, size: 16, num_views: 3}\n"
        "backbone: {name: timm, model: test_resnet}\n"
        "method:\n  name: simclr\n  loss: {name: negative_cosine}\n"
        "optimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\n"
        "train: {epochs: 1, batch_size: 16}\n"
    )
    (problem,) = validate(recipe, ()).problems
    assert problem.startswith(f"{recipe}:7:9: method.loss: negative_cosine takes 2 views, and this")
    assert validate(recipe, ["augmentation.num_views=2"]).problems == ()


def test_another_loss_in_the_slot() -> None:
    simsiam = make_simsiam(loss={"name": "info_nce", "temperature": 0.2, "symmetric": False})
    output = simsiam.objective(simsiam.embed(make_batch()), make_batch(), FIRST)
    assert output.loss.isfinite()
    assert "contrastive_top1" in loss_metrics(simsiam, output)


# --- An independent reference: the paper's algorithm 1 in loops, float64 -------------------------


class Reference:
    """Backbone, projector and predictor of `make_simsiam(batch_norm=True)` by hand."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.weights = {
            name: value.clone().requires_grad_()
            for name, value in state.items()
            if value.is_floating_point() and "running" not in name
        }

    def __call__(self, name: str) -> Tensor:
        return self.weights[name]

    def norm(self, x: Tensor, prefix: str) -> Tensor:
        """BatchNorm over everything but channels, which come second."""
        rest = [axis for axis in range(x.ndim) if axis != 1]
        mean = x.mean(rest, keepdim=True)
        x = (x - mean) / ((x - mean) ** 2).mean(rest, keepdim=True).add(1e-5).sqrt()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return x * self(f"{prefix}.weight").view(shape) + self(f"{prefix}.bias").view(shape)

    def head(self, x: Tensor, name: str) -> Tensor:
        x = x @ self(f"{name}.layers.0.0.weight").T
        x = self.norm(x, f"{name}.layers.0.1").clamp_min(0.0)
        return x @ self(f"{name}.layers.1.0.weight").T

    def network(self, view: Tensor) -> Tensor:
        weight, bias = self("backbone.net.0.weight"), self("backbone.net.0.bias")
        patches = nn.functional.unfold(view, 3)  # (B, 27, positions)
        x = torch.einsum("oi,bip->bop", weight.flatten(1), patches) + bias[None, :, None]
        return self.norm(x, "backbone.net.1").tanh().mean(2)

    def loss(self, views: tuple[Tensor, ...]) -> Tensor:
        z = [self.head(self.network(view), "projector") for view in views]
        p = [self.head(each, "predictor") for each in z]
        total = torch.zeros((), dtype=torch.float64)
        for mine, other in ((0, 1), (1, 0)):
            for image in range(BATCH):
                a, b = p[mine][image], z[other][image].detach()
                total = total - (a @ b) / (a.norm() * b.norm()) / BATCH / 2
        return total

    def step(self, views: tuple[Tensor, ...], lr: float, predictor_lr: float) -> float:
        loss = self.loss(views)
        loss.backward()
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight -= (predictor_lr if name.startswith("predictor") else lr) * weight.grad
                weight.grad = None
        return loss.item()


def test_several_steps_equal_the_paper_written_out() -> None:
    """Value, gradient and state, with a learning rate that falls for all but the predictor."""
    simsiam = make_simsiam(batch_norm=True)
    reference = Reference(simsiam.state_dict())
    optimizer = resolve_component(
        load_plugins().registry, "optimizer", {"name": "sgd", "lr": 0.2, "momentum": 0.0}
    ).build()
    schedule: Schedule = resolve_component(
        load_plugins().registry, "schedule", {"name": "cosine"}
    ).build()
    optimization = Optimization(simsiam, optimizer, schedule, batch_size=BATCH)
    for step in range(4):
        progress, batch = Progress(step, 5, 5), make_batch(step)
        optimization.set_rules(progress)
        loss = simsiam.objective(simsiam.embed(batch), batch, progress).loss
        optimization.backward(loss)
        optimization.step()
        lr = 0.2 * (1 + math.cos(math.pi * step / 5)) / 2
        assert loss.item() == pytest.approx(reference.step(batch.views, lr, 0.2), abs=1e-12)
    for name, weight in reference.weights.items():
        found = simsiam.state_dict()[name]
        torch.testing.assert_close(found, weight.detach(), rtol=1e-9, atol=1e-11, msg=name)


def test_the_predictor_may_follow_the_schedule() -> None:
    kept, followed = (
        [group.lr_constant for group in make_simsiam(**fields).param_groups()]
        for fields in ({}, {"predictor_lr_constant": False})
    )
    assert (kept, followed) == ([False, True], [False, False])
    simsiam = make_simsiam()
    names = [[name for name, _ in group.params] for group in simsiam.param_groups()]
    assert sorted([*names[0], *names[1]]) == sorted(dict(simsiam.named_parameters()))
    assert all(name.startswith("predictor.") for name in names[1])


def test_a_step_of_lightlys_parts() -> None:
    """lightly's heads with our weights in them: projections, loss and gradients."""
    heads = pytest.importorskip("lightly.models.modules.heads")
    simsiam = make_method("simsiam", projector=PROJECTOR, predictor=PREDICTOR)
    theirs = nn.ModuleDict(
        {
            "projector": heads.SimSiamProjectionHead(6, 10, 8),
            "predictor": heads.SimSiamPredictionHead(8, 5, 8),
        }
    ).double()
    for name in theirs:
        own = list(getattr(simsiam, name).parameters())
        other = list(theirs[name].parameters())
        assert [p.shape for p in own] == [p.shape for p in other]
        for mine, his in zip(own, other, strict=True):
            his.data.copy_(mine.data)
    batch = make_batch()
    features = [simsiam.backbone(view).detach() for view in batch.views]
    z = [theirs["projector"](each) for each in features]
    p = [theirs["predictor"](each) for each in z]
    cosine = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    loss = 0.5 * (cosine(z[0].detach(), p[1]) + cosine(z[1].detach(), p[0]))
    loss.backward()
    found = simsiam.objective(simsiam.embed(batch), batch, FIRST).loss
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-14)
    for name in theirs:
        pairs = zip(getattr(simsiam, name).parameters(), theirs[name].parameters(), strict=True)
        for mine, his in pairs:
            torch.testing.assert_close(mine.grad, his.grad, rtol=1e-9, atol=1e-13)


PROJECTOR = {"name": "mlp", "num_layers": 3, "hidden_dim": 10, "out_dim": 8}
PROJECTOR |= {"output_norm": "bn_no_affine"}
PREDICTOR = {"name": "mlp", "hidden_dim": 5, "out_dim": 8, "output_norm": "none"}
PREDICTOR |= {"output_bias": True}


# --- The paper's networks -------------------------------------------------------------------------


def test_the_heads_are_the_papers() -> None:
    """Linear without bias, BatchNorm, ReLU, twice; Linear, BatchNorm without affine. The predictor:
    a bottleneck, whose last layer has a bias and no BatchNorm."""
    config: Any = method_slot("simsiam").config
    projector = config.projector.build(in_dim=2048)
    predictor = config.predictor.build(in_dim=2048)
    layers = [[type(m).__name__ for m in layer] for layer in projector.as_layers()]
    assert layers == [["Linear", "BatchNorm1d", "ReLU"]] * 2 + [["Linear", "BatchNorm1d"]]
    assert [layer[0].bias for layer in projector.as_layers()] == [None] * 3
    assert [layer[1].affine for layer in projector.as_layers()] == [True, True, False]
    layers = [[type(m).__name__ for m in layer] for layer in predictor.as_layers()]
    assert layers == [["Linear", "BatchNorm1d", "ReLU"], ["Linear"]]
    first, last = (layer[0] for layer in predictor.as_layers())
    assert (first.weight.shape, last.weight.shape) == ((512, 2048), (2048, 512))
    assert (first.bias is None, last.bias is None) == (True, False)
    count = sum(p.numel() for head in (projector, predictor) for p in head.parameters())
    assert count == 3 * 2048**2 + 4 * 2048 + 2 * 512 * 2048 + 2 * 512 + 2048


def test_no_gradient_passes_the_target() -> None:
    simsiam, batch = make_simsiam(batch_norm=True), make_batch()
    found = simsiam.embed(batch)
    assert not found["target"].requires_grad
    found["target"].requires_grad_()
    simsiam.objective(found, batch, FIRST).loss.backward()
    assert found["target"].grad is None
    for part in (simsiam.backbone, simsiam.projector, simsiam.predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_each_view_has_its_own_batch_statistics() -> None:
    simsiam, batch = make_simsiam(batch_norm=True), make_batch()
    norm, conv = simsiam.backbone.net[1], simsiam.backbone.net[0]
    expected = torch.zeros_like(norm.running_mean)
    for view in batch.views:
        expected = 0.9 * expected + 0.1 * conv(view).mean(dim=(0, 2, 3)).detach()
    simsiam.embed(batch)
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.running_mean, expected)


# --- The engine's side ----------------------------------------------------------------------------


def test_embeddings_have_one_row_per_image() -> None:
    simsiam, batch = make_simsiam(), make_batch()
    found = simsiam.embed(batch)
    assert {name: value.shape[:2] for name, value in found.items()} == dict.fromkeys(
        ("features", "prediction", "target"), (BATCH, 2)
    )
    torch.testing.assert_close(found["features"][:, 1], simsiam.encoder(batch.views[1]))
    assert simsiam.encoder is simsiam.backbone
    projected = nn.Sequential(*simsiam.projection_layers)(found["features"][:, 0])
    torch.testing.assert_close(projected, found["target"][:, 0])


@pytest.mark.parametrize("part", [1, 5])
def test_parts_and_the_whole_agree(part: int) -> None:
    simsiam, batch = make_simsiam(), make_batch()
    whole, parts = simsiam.embed(batch), in_parts(simsiam, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_target_std_is_that_of_normalised_targets() -> None:
    torch.manual_seed(4)
    p, z = torch.randn(2, 400, 2, 64, dtype=torch.float64).unbind()
    simsiam = make_simsiam()
    output = simsiam.objective({"prediction": p, "target": z}, make_batch(), FIRST)
    assert float(output.metrics["target_std"]) == pytest.approx(1 / 8, rel=0.01)
    collapsed = {"prediction": p, "target": z[:1].expand_as(z)}
    output = simsiam.objective(collapsed, make_batch(), FIRST)
    assert float(output.metrics["target_std"]) == pytest.approx(0.0, abs=1e-12)


def test_training_lowers_the_loss() -> None:
    losses = [output.loss.item() for output in train(make_simsiam(True), range(60), lr=0.3)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


# --- What is refused ------------------------------------------------------------------------------


def test_problems() -> None:
    assert problems("simsiam") == []
    three: RunFacts = replace(FACTS, views=(ViewSpec(SIDE),) * 3)
    assert problems("simsiam", three) == [
        ("", "simsiam needs 2 views, but the augmentation makes 3")
    ]
    ((_, text),) = problems("simsiam", replace(FACTS, batch_size=1))
    assert "batch_size >= 2" in text


def test_heads_that_do_not_fit() -> None:
    fields = {"projector": LN_HEAD, "predictor": {**BN_HEAD, "out_dim": 3}}
    with pytest.raises(RecipeError, match=r"method\.predictor: .* width 3 .* 4; set both"):
        method_slot("simsiam", **fields).build(SmallNet(False), FACTS)
