"""DINO as the engine drives it, against closed forms, the paper written out, and other code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from distill_setup import (
    BATCH,
    CROP_FACTS,
    CROPS,
    DINO_HEAD,
    FACTS,
    SIDE,
    in_parts,
    make_batch,
    make_dino,
    make_method,
    method_slot,
    problems,
)
from torch import Tensor, nn

from sslkit.api import Progress, ViewSpec

LOCALS = len(CROPS) - 2


def objective(method: Any, student: Tensor, teacher: Tensor) -> Any:
    """The objective of given scores, with the target that `embed` would make of the teacher's."""
    target = ((teacher - method.center) / method.temperature).softmax(-1)
    found = {"student": student, "teacher": teacher, "target": target}
    return method.objective(found, make_batch(), Progress(0, 5, 5))


# --- Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(65536, 11.0904), (4096, 8.3178), (7, 1.9459)])
def test_uniform_scores_lose_ln_k(count: int, expected: float) -> None:
    dino = make_dino(head={**DINO_HEAD, "out_dim": count})
    student, teacher = torch.zeros(2, 5, count), torch.rand(2, 2, count)
    found = objective(dino.float(), student, teacher)
    assert found.loss.item() == pytest.approx(math.log(count), rel=1e-5)
    assert found.loss.item() == pytest.approx(expected, abs=5e-5)


def test_entropy_and_divergence_at_both_collapses() -> None:
    """Uniform: ln K and 0. One prototype: 0, and the divergence is the loss."""
    dino = make_dino()
    uniform = objective(dino, torch.zeros(4, 5, 7).double(), torch.zeros(4, 2, 7).double())
    assert float(uniform.metrics["teacher_entropy"]) == pytest.approx(math.log(7), abs=1e-12)
    assert float(uniform.metrics["kl_divergence"]) == pytest.approx(0.0, abs=1e-12)
    one = torch.zeros(4, 2, 7).double()
    one[..., 3] = 1e3
    found = objective(dino, torch.zeros(4, 5, 7).double(), one)
    assert float(found.metrics["teacher_entropy"]) == pytest.approx(0.0, abs=1e-12)
    assert float(found.metrics["kl_divergence"]) == pytest.approx(math.log(7), abs=1e-12)
    agreed = objective(dino, one[:, :1].expand(4, 5, 7) * 1.0, one)
    assert agreed.loss.item() == pytest.approx(0.0, abs=1e-12)


# --- The paper written out: loops, float64, no shared code ----------------------------------------


class Reference:
    """Student and teacher of `make_dino(batch_norm=True)`, the centre, and SGD."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        own = ("backbone.", "head.")
        self.student = {
            name: value.clone().requires_grad_()
            for name, value in state.items()
            if name.startswith(own) and value.is_floating_point() and "running" not in name
        }
        self.teacher = {name: value.detach().clone() for name, value in self.student.items()}
        self.center = torch.zeros(7, dtype=torch.float64)

    @staticmethod
    def norm(x: Tensor, weights: dict[str, Tensor], prefix: str) -> Tensor:
        rest = [axis for axis in range(x.ndim) if axis != 1]
        mean = x.mean(rest, keepdim=True)
        x = (x - mean) / ((x - mean) ** 2).mean(rest, keepdim=True).add(1e-5).sqrt()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        return x * weights[f"{prefix}.weight"].view(shape) + weights[f"{prefix}.bias"].view(shape)

    def features(self, views: list[Tensor], w: dict[str, Tensor]) -> Tensor:
        """Views of one size, one after the other."""
        patches = nn.functional.unfold(torch.cat(views), 3)
        kernel, bias = w["backbone.net.0.weight"].flatten(1), w["backbone.net.0.bias"]
        x = torch.einsum("oi,bip->bop", kernel, patches) + bias[None, :, None]
        return self.norm(x, w, "backbone.net.1").tanh().mean(2)

    def scores(self, x: Tensor, w: dict[str, Tensor]) -> Tensor:
        for layer in (0, 1):
            prefix = f"head.layers.{layer}"
            x = x @ w[f"{prefix}.0.weight"].T + w[f"{prefix}.0.bias"]
            x = self.norm(x, w, f"{prefix}.1")
            x = x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))  # GELU
        x = x @ w["head.layers.2.0.weight"].T + w["head.layers.2.0.bias"]
        v = w["head.layers.3.weight"]
        rows = [
            [(x[i] @ v[k]) / x[i].norm() / v[k].norm() for k in range(len(v))]
            for i in range(len(x))
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def step(self, views: tuple[Tensor, ...], step: int, per_epoch: int, total: int) -> float:
        seen, small = list(views[:2]), list(views[2:])
        features = [self.features(seen, self.student), self.features(small, self.student)]
        student = self.scores(torch.cat(features), self.student).split(BATCH)
        teacher = self.scores(self.features(seen, self.teacher), self.teacher).split(BATCH)
        done = step / per_epoch
        tau = 0.04 + (0.07 - 0.04) * min(done / 2.0, 1.0)
        loss, terms = torch.zeros((), dtype=torch.float64), 0
        for t in (0, 1):
            for s in range(len(views)):
                if s == t:
                    continue
                terms += 1
                for image in range(BATCH):
                    p = torch.exp((teacher[t][image] - self.center) / tau)
                    q = torch.exp(student[s][image] / 0.1)
                    loss = loss - ((p / p.sum()) * torch.log(q / q.sum())).sum() / BATCH
        loss = loss / terms
        loss.backward()
        self.descend(frozen=step < per_epoch)
        self.center = 0.9 * self.center + 0.1 * torch.cat(teacher).mean(0)
        m = 1 - (1 - 0.9) * (math.cos(math.pi * step / total) + 1) / 2
        for name, weight in self.student.items():
            self.teacher[name] = m * self.teacher[name] + (1 - m) * weight.detach()
        return loss.item()

    @torch.no_grad()
    def descend(self, frozen: bool) -> None:
        for name, weight in self.student.items():
            gradient = weight.grad
            assert gradient is not None
            if gradient.norm() > 0.05:
                gradient = gradient * (0.05 / (gradient.norm() + 1e-6))
            if not (frozen and name == "head.layers.3.weight"):
                weight -= 0.3 * gradient
            weight.grad = None


def test_several_steps_equal_the_paper_written_out() -> None:
    """Value, weights, teacher and centre: centring, sharpening that warms up, clipping of each
    tensor, the last layer frozen for an epoch of two steps, momentum on a cosine."""
    total, per_epoch = 6, 2
    dino = make_dino(
        batch_norm=True,
        teacher_temperature={"name": "linear", "start": 0.04, "end": 0.07, "epochs": 2.0},
        teacher_momentum={"name": "cosine", "start": 0.9, "end": 1.0},
        max_grad_norm=0.05,
    )
    reference = Reference(dino.state_dict())
    (group,) = dino.param_groups()
    optimizer = torch.optim.SGD([p for _, p in group.params], lr=0.3)
    clipped = 0
    for step in range(total):
        progress, batch = Progress(step, total, per_epoch), make_batch(step, sides=CROPS)
        dino.before_step(progress)
        found = dino.objective(dino.embed(batch), replace(batch, views=()), progress)
        found.loss.backward()
        dino.after_backward(progress)
        assert (dino.head.layers[3].weight.grad is None) == (step < per_epoch)
        for _, parameter in group.params:
            norm = nn.utils.clip_grad_norm_(parameter, group.max_grad_norm)
            clipped += int(norm > group.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        dino.after_step(progress.next(), found.carry)
        expected = reference.step(batch.views, step, per_epoch, total)
        assert found.loss.item() == pytest.approx(expected, abs=1e-10)
    assert clipped > 0
    torch.testing.assert_close(dino.center, reference.center, rtol=1e-9, atol=1e-12)
    state = dino.state_dict()
    for name, weight in reference.student.items():
        torch.testing.assert_close(state[name], weight.detach(), rtol=1e-8, atol=1e-11, msg=name)
        mine = name.replace("backbone.", "teacher.module.0.").replace("head.", "teacher.module.1.")
        torch.testing.assert_close(state[mine], reference.teacher[name], rtol=1e-8, atol=1e-11)


# --- Other code -----------------------------------------------------------------------------------


def test_the_loss_and_the_centre_are_lightlys() -> None:
    """Over three batches, whose centres lightly updates in the loss."""
    theirs = pytest.importorskip("lightly.loss").DINOLoss(output_dim=7).double()
    dino = make_dino(teacher_temperature=0.05)
    torch.manual_seed(1)
    for step in range(3):
        student = torch.randn(BATCH, 5, 7, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(BATCH, 2, 7, dtype=torch.float64)
        found = objective(dino, student, teacher)
        (mine,) = torch.autograd.grad(found.loss, student)
        loss = theirs([*teacher.unbind(1)], [*student.unbind(1)], teacher_temp=0.05)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=0.0)  # their 0.05 is float32
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-9)
        dino.after_step(Progress(step + 1, 5, 5), found.carry)
        torch.testing.assert_close(dino.center, theirs.center[0, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_head_is_lightlys(batch_norm: bool) -> None:
    heads = pytest.importorskip("lightly.models.modules.heads")
    theirs = heads.DINOProjectionHead(6, 10, 5, 7, batch_norm=batch_norm).double()
    mine = make_dino(batch_norm=batch_norm).head
    with torch.no_grad():
        linear = [m for m in mine.modules() if isinstance(m, nn.Linear)]
        others = [m for m in theirs.layers if isinstance(m, nn.Linear)]
        for own, other in zip(linear, others, strict=True):
            own.weight.copy_(other.weight)
            if other.bias is not None:  # lightly leaves it out before BatchNorm, which undoes it
                own.bias.copy_(other.bias)
        mine.layers[3].weight.copy_(theirs.last_layer.weight_v)
    x = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-9, atol=1e-12)
    (mine(x) ** 3).sum().backward()
    (theirs(x) ** 3).sum().backward()
    assert not theirs.last_layer.weight_g.requires_grad
    torch.testing.assert_close(
        mine.layers[3].weight.grad, theirs.last_layer.weight_v.grad, rtol=1e-8, atol=1e-11
    )


# --- The networks ---------------------------------------------------------------------------------


def test_the_head_begins_as_the_reference_codes() -> None:
    """Truncated normal 0.02 and no bias; prototypes of length 1, whose directions are as torch
    makes those of a linear layer; weights of 384 - 2048 - 2048 - 256 - 65536."""
    config: Any = method_slot("dino").config
    torch.manual_seed(0)
    head = config.head.build(in_dim=384)
    assert head.out_dim == 65536
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(2048, 384), (2048, 2048), (256, 2048)]
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.bias.abs().max() == 0.0
    prototypes = head.as_layers()[-1]
    assert prototypes.weight.abs().max() <= 1 / 16
    assert prototypes.weight.std().item() == pytest.approx(1 / 16 / math.sqrt(3.0), rel=0.01)
    assert prototypes.lengths is None
    scores = head(torch.randn(2, 384))
    assert scores.abs().max() <= 1.0
    count = sum(p.numel() for p in head.parameters())
    assert count == 384 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 256 + 256 + 256 * 65536


def test_lengths_of_prototypes_can_be_trained() -> None:
    head = make_dino(head={**DINO_HEAD, "unit_prototypes": False}).head
    x = torch.randn(4, 6, dtype=torch.float64)
    before = head(x)
    with torch.no_grad():
        head.layers[3].lengths[2] = 3.0
    torch.testing.assert_close(head(x)[:, 2], 3.0 * before[:, 2])
    assert head.layers[3].lengths.requires_grad


def test_scores_are_in_float32_under_autocast() -> None:
    head = make_dino().head.float()
    x = torch.randn(64, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(x)
        narrow = head.layers[:3](x)
    assert (scores.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    unit = nn.functional.normalize(narrow.double(), dim=1)
    exact = unit @ nn.functional.normalize(head.layers[3].weight.double(), dim=1).T
    assert (scores - exact).abs().max() < 1e-6


def test_views_of_one_size_pass_together_and_the_teacher_sees_the_global_ones() -> None:
    dino, batch = make_dino(batch_norm=True), make_batch(sides=CROPS)
    found = dino.embed(batch)
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "features": (BATCH, 2, 6),
        "student": (BATCH, 2 + LOCALS, 7),
        "teacher": (BATCH, 2, 7),
        "target": (BATCH, 2, 7),
    }
    own, teachers = dino.backbone.net[1], dino.encoder.net[1]
    assert (own.num_batches_tracked, teachers.num_batches_tracked) == (2, 1)
    assert dino.head.layers[0][1].num_batches_tracked == 1
    conv = dino.encoder.net[0]
    expected = 0.1 * conv(torch.cat(batch.views[:2])).mean(dim=(0, 2, 3))
    torch.testing.assert_close(teachers.running_mean, expected)


def test_global_views_may_stand_anywhere() -> None:
    views = tuple(
        ViewSpec(side, role)
        for side, role in ((SIDE - 2, "local"), (SIDE, "global"), (SIDE, "global"))
    )
    dino = make_dino(facts=replace(FACTS, views=views))
    batch = make_batch(sides=[view.sides[0] for view in views])
    found = dino.embed(batch)
    first = dino.teacher(batch.views[1])
    torch.testing.assert_close(found["teacher"][:, 0], first)
    loss = dino.objective(found, batch, Progress(0, 5, 5)).loss
    logs = (found["student"] / 0.1).log_softmax(-1)
    pairs = [(0, 0), (0, 2), (1, 0), (1, 1)]
    terms = [-(found["target"][:, t] * logs[:, s]).sum(-1).mean() for t, s in pairs]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_no_gradient_reaches_the_teacher_and_its_encoder_is_evaluated() -> None:
    dino, batch = make_dino(), make_batch(sides=CROPS)
    found = dino.embed(batch)
    found["target"].requires_grad_()
    dino.objective(found, batch, Progress(0, 5, 5)).loss.backward()
    assert found["target"].grad is None
    assert all(p.grad is None for p in dino.teacher.parameters())
    for part in (dino.backbone, dino.head):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert dino.encoder is dino.teacher.module[0]
    torch.testing.assert_close(found["features"][:, 1], dino.encoder(batch.views[1]))
    projected = nn.Sequential(*dino.projection_layers)(found["features"][:, 1])
    torch.testing.assert_close(projected, found["teacher"][:, 1])
    (group,) = dino.param_groups()
    assert group.max_grad_norm == 3.0
    assert not any(name.startswith("teacher") for name, _ in group.params)


@pytest.mark.parametrize("part", [1, 5])
def test_parts_and_the_whole_agree(part: int) -> None:
    dino, batch = make_dino(), make_batch(sides=CROPS)
    whole, parts = dino.embed(batch), in_parts(dino, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_a_head_of_another_kind_has_its_last_layer_frozen() -> None:
    head = {"name": "mlp", "hidden_dim": 10, "out_dim": 7, "hidden_norm": "ln"}
    dino = make_dino(head={**head, "output_norm": "none"}, freeze_last_layer_epochs=2)
    batch = make_batch(sides=CROPS)
    for step, frozen in ((9, True), (10, False)):
        progress = Progress(step, 20, 5)
        dino.objective(dino.embed(batch), batch, progress).loss.backward()
        dino.after_backward(progress)
        grads = [p.grad is None for p in dino.head.parameters()]
        assert grads == [False] * (len(grads) - 1) + [frozen]


# --- Schedules ------------------------------------------------------------------------------------


def test_momentum_and_weight_decay_follow_the_reference_codes_cosine() -> None:
    """`cosine_scheduler` of the reference code, without warm-up, at every step."""
    steps = 40
    momentum: Any = method_slot("dino").config.teacher_momentum  # type: ignore[attr-defined]
    iters = np.arange(steps)
    cosine = 1.0 + 0.5 * (0.996 - 1.0) * (1.0 + np.cos(np.pi * iters / steps))
    found = [momentum.at(Progress(step, steps, 10)) for step in range(steps)]
    assert found == pytest.approx(cosine.tolist(), abs=1e-12)


def test_the_temperature_warms_up_and_is_not_in_checkpoints() -> None:
    dino = make_dino()
    seen = []
    for epoch in (0, 15, 30, 60):
        dino.before_step(Progress(epoch * 5, 500, 5))
        seen.append(dino.temperature.item())
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert set(dino.state_dict()) >= {"center"}
    assert "temperature" not in dino.state_dict()
    assert "pairs" not in dino.state_dict()


def test_the_teacher_drops_nothing() -> None:
    """The student has stochastic depth, as in the reference code; the teacher has not."""
    from sslkit.api import resolve_component
    from sslkit.host.plugins import load_plugins

    block = {"name": "timm", "model": "test_vit", "patch_size": 8, "drop_path_rate": 0.9}
    block["model_args"] = {"dynamic_img_size": True}
    backbone = resolve_component(load_plugins().registry, "backbone", block)
    views = (ViewSpec(32), ViewSpec(32), ViewSpec(16, "local"))
    slot = method_slot("dino", head=DINO_HEAD)
    torch.manual_seed(0)
    network = backbone.build(channels=3, image_size=32)
    dino: Any = slot.build(network, replace(FACTS, views=views))
    batch = make_batch(sides=(32, 32, 16))
    batch = replace(batch, views=tuple(view.float() for view in batch.views))
    one, other = dino.train().embed(batch), dino.embed(batch)
    torch.testing.assert_close(one["teacher"], other["teacher"])
    assert not torch.allclose(one["student"], other["student"])


# --- What is refused ------------------------------------------------------------------------------


def test_problems() -> None:
    assert problems("dino", CROP_FACTS) == []
    assert problems("dino") == []
    small = replace(FACTS, views=(ViewSpec(8, "local"),) * 2)
    ((path, text),) = problems("dino", small)
    assert path == ""
    assert "needs a view of role global" in text
    ((_, text),) = problems("dino", replace(FACTS, views=(ViewSpec(8),)))
    assert "2 views or more" in text


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"center_momentum": 1.0}, "center_momentum", "one prototype"),
        ({"teacher_temperature": 0.1}, "teacher_temperature", "does not sharpen"),
        ({"teacher_momentum": 1.0}, "teacher_momentum", "never moves"),
        ({"freeze_last_layer_epochs": 10**6}, "freeze_last_layer_epochs", "stays random; set less"),
    ],
)
def test_warnings(fields: dict[str, Any], path: str, words: str) -> None:
    long = replace(CROP_FACTS, total_steps=100_000)
    slot = method_slot("dino", **fields)
    ((found, text),) = slot.cls.warnings(slot.config, long)
    assert found == path
    assert words in text
    slot = method_slot("dino")
    assert list(slot.cls.warnings(slot.config, long)) == []


def test_dino_in_the_form_of_two_views() -> None:
    dino = make_method("dino", head=DINO_HEAD)
    batch = make_batch()
    loss = dino.objective(dino.embed(batch), batch, Progress(0, 5, 5)).loss
    assert loss.isfinite()
