"""NNCLR as the engine drives it, against closed forms, a slow reference and lightly."""

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
    STEPS,
    SmallNet,
    build,
    in_parts,
    make_batch,
    method_slot,
    train,
)
from sslkit_cluster.nnclr import nearest
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Progress, RunFacts, ViewSpec
from sslkit.errors import RecipeError

FIRST = Progress(0, STEPS, 5)


def nnclr(batch_norm: bool = False, facts: RunFacts = FACTS, **fields: Any) -> Any:
    head = BN_HEAD if batch_norm else LN_HEAD
    fields = {"projector": head, "predictor": head, "queue_size": 20, **fields}
    return build("nnclr", facts, batch_norm=batch_norm, **fields)


def unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths


def slow_loss(method: Any, queue: list[Tensor], views: Sequence[Tensor]) -> Any:
    """Equation 3, image by image: (loss, projections of the first view)."""
    z = [method.projector(method.backbone(view)) for view in views]
    p = [unit(method.predictor(each)) for each in z]
    z = [unit(each).detach() for each in z]
    total: Any = 0.0
    for view in (0, 1):
        for i in range(len(z[0])):
            cosines = [float(z[view][i] @ row) for row in queue]
            neighbour = queue[cosines.index(max(cosines))]
            logits = torch.stack([neighbour @ each / 0.1 for each in p[1 - view]])
            total = total + logits.exp().sum().log() - logits[i]
    return total / (2 * len(z[0])), z[0]


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_neighbours_and_predictions_that_are_aligned_and_orthogonal(temperature: float) -> None:
    """The aligned orthogonal pair: ln(1 + e^(-1 / temperature))."""
    method = nnclr(loss={"name": "info_nce", "temperature": temperature, "symmetric": False})
    basis = torch.eye(4, dtype=torch.float64)
    method.supports.features.copy_(basis.repeat(5, 1))
    rows = basis[:2, None].expand(2, 2, 4)
    found = {"projection": 3.0 * rows, "prediction": 2.0 * rows}
    loss = method.objective(found, make_batch(size=2), FIRST).loss
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0 / temperature)), rel=1e-12)


def test_chance() -> None:
    """Equal predictions: ln B."""
    method = nnclr()
    found = {
        "projection": torch.randn(7, 2, 4).double(),
        "prediction": torch.ones(7, 2, 4).double(),
    }
    loss = method.objective(found, make_batch(size=7), FIRST).loss
    assert loss.item() == pytest.approx(math.log(7), rel=1e-12)


@pytest.mark.parametrize("size", [5, 12, 20, 31])
def test_equals_the_slow_reference_over_steps(size: int) -> None:
    """Loss, weights and queue after six steps of 12 images, for queues of any size."""
    method = nnclr(queue_size=size)
    slow = copy.deepcopy(method)
    queue = list(unit(method.supports.features))  # drawn and normalised in float32
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.3)
    for step, output in enumerate(train(method, range(6))):
        loss, projections = slow_loss(slow, queue, make_batch(step).views)
        torch.testing.assert_close(output.loss, loss, rtol=1e-9, atol=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = [*queue, *projections][-size:]
        oldest_first = method.supports.features.roll(-int(method.supports.pointer), dims=0)
        torch.testing.assert_close(unit(oldest_first), torch.stack(queue), rtol=1e-8, atol=1e-10)
    for (name, a), b in zip(method.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


def test_a_loss_of_another_kind() -> None:
    """Any loss on two views goes: here the candidates of lightly's NTXentLoss, of both views."""
    lightly = pytest.importorskip("lightly.loss")
    method = nnclr(loss={"name": "nt_xent", "temperature": 0.5})
    found = method.embed(make_batch())
    output = method.objective(found, make_batch(), FIRST)
    supports = method.supports.features
    neighbours = [
        supports[(unit(found["projection"][:, view]) @ supports.T).argmax(1)] for view in (0, 1)
    ]
    theirs = lightly.NTXentLoss(temperature=0.5)
    expected = 0.5 * (
        theirs(neighbours[0], found["prediction"][:, 1])
        + theirs(neighbours[1], found["prediction"][:, 0])
    )
    torch.testing.assert_close(output.loss, expected)


# --- Supports -------------------------------------------------------------------------------------


def test_neighbours_are_those_of_lightly() -> None:
    """Found before the batch enters, over steps that fit into its bank; ours holds unit vectors
    and takes the first view, its example the second."""
    modules = pytest.importorskip("lightly.models.modules")
    theirs = modules.NNMemoryBankModule(size=(20, 4))
    method = nnclr(queue_size=20).float()
    method.supports.features.copy_(theirs.bank)
    for step in range(7):
        generator = torch.Generator().manual_seed(step)
        z = torch.randn(5, 2, 4, generator=generator)
        expected = [theirs(z[:, 1], update=False), theirs(z[:, 0], update=True)][::-1]
        output = method.objective({"projection": z, "prediction": z}, make_batch(size=5), FIRST)
        for (_, given), rows in zip(output.losses, expected, strict=True):
            torch.testing.assert_close(unit(given.views[0]), unit(rows))
        method.after_step(FIRST.next(), output.carry)
        torch.testing.assert_close(method.supports.features, F.normalize(theirs.bank, dim=1))


def test_no_image_is_its_own_neighbour() -> None:
    """The queue that a loss sees holds no projection of its batch; after the step, those of the
    first view alone."""
    method = nnclr(queue_size=40)
    for step in range(3):
        batch, before = make_batch(step), method.supports.features.clone()
        found = method.embed(batch)
        output = method.objective(found, batch, FIRST)
        assert torch.equal(method.supports.features, before)
        projections = F.normalize(found["projection"], dim=-1)
        assert (projections.flatten(0, 1) @ before.T).max() < 1 - 1e-9
        method.after_step(FIRST.next(), output.carry)
        nearness = (projections @ method.supports.features.T).amax(dim=2)
        assert (nearness[:, 0] > 1 - 1e-12).all()
        assert (nearness[:, 1] < 1 - 1e-9).all()


def test_of_equal_supports_the_first_is_taken_in_strips_of_any_size() -> None:
    torch.manual_seed(0)
    supports = F.normalize(torch.randn(9, 3), dim=1).repeat(2, 1)
    rows = F.normalize(torch.randn(14, 3), dim=1)
    expected = torch.tensor([[float(row @ each) for each in supports[:9]] for row in rows]).argmax(
        1
    )
    for chunk in (1, 40, 10**6):
        assert torch.equal(nearest(rows, supports, chunk), expected)


def test_neither_neighbours_nor_projections_take_a_gradient() -> None:
    method, batch = nnclr(), make_batch()
    found = {name: rows.detach().requires_grad_() for name, rows in method.embed(batch).items()}
    method.objective(found, batch, FIRST).loss.backward()
    assert found["projection"].grad is None
    assert found["prediction"].grad is not None
    assert found["prediction"].grad.abs().amax(dim=2).min() > 0
    assert not method.supports.features.requires_grad
    trained = {name.split(".")[0] for group in method.param_groups() for name, _ in group.params}
    assert trained == {"backbone", "projector", "predictor"}


# --- The engine's side ----------------------------------------------------------------------------


def test_metrics() -> None:
    """All supports are alike but one: the neighbours are two."""
    method = nnclr(queue_size=4)
    basis = torch.eye(4, dtype=torch.float64)
    method.supports.features.copy_(basis[[0, 0, 0, 1]])
    rows = torch.stack([basis[0], basis[1], basis[0] + basis[2], basis[0]])[:, None].expand(4, 2, 4)
    output = method.objective({"projection": rows, "prediction": rows}, make_batch(size=4), FIRST)
    assert output.metrics["distinct_neighbours"] == 0.5
    expected = (3.0 + math.sqrt(0.5)) / 4
    assert float(output.metrics["neighbour_similarity"]) == pytest.approx(expected)


def test_each_view_has_its_own_batch_statistics() -> None:
    method, batch = nnclr(batch_norm=True), make_batch()
    conv, norm = copy.deepcopy(method.backbone.net[0]), method.backbone.net[1]
    expected = torch.zeros_like(norm.running_mean)
    for view in batch.views:
        expected = 0.9 * expected + 0.1 * conv(view).mean(dim=(0, 2, 3)).detach()
    method.embed(batch)
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.parametrize("part", [1, 5, 12])
def test_parts_and_the_whole_agree(part: int) -> None:
    method, batch = nnclr(), make_batch()
    whole, parts = method.embed(batch), in_parts(method, batch, part)
    for name, value in whole.items():
        assert value.shape[:2] == (BATCH, 2)
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_state_dict_is_complete() -> None:
    straight, half, restored = (nnclr(batch_norm=True) for _ in range(3))
    list(train(straight, range(6)))
    list(train(half, range(3)))
    restored.load_state_dict(half.state_dict())
    list(train(restored, range(3, 6)))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_default_heads_are_those_of_lightly() -> None:
    """Which quote the paper's: 2048, 2048, 256, each with BatchNorm; then 4096, 256."""
    modules = pytest.importorskip("lightly.models.modules")
    method: Any = method_slot("nnclr", queue_size=8).build(SmallNet(True), FACTS)
    pairs = (
        (method.projector, modules.NNCLRProjectionHead(6, 2048, 256)),
        (method.predictor, modules.NNCLRPredictionHead(256, 4096, 256)),
    )
    for mine, theirs in pairs:
        leaves = [m for m in mine.layers.modules() if not list(m.children())]
        others = [m for m in theirs.layers.modules() if not list(m.children())]
        assert [type(m) for m in leaves] == [type(m) for m in others]
        assert [p.shape for p in mine.parameters()] == [p.shape for p in theirs.parameters()]
    assert nn.Sequential(*method.projection_layers)(torch.rand(3, 6)).shape == (3, 256)


# --- What is refused and warned of ----------------------------------------------------------------


def problems(facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("nnclr", **fields)
    return list(slot.cls.problems(slot.config, facts))


def warnings(**fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("nnclr", **fields)
    return list(slot.cls.warnings(slot.config, FACTS))


def test_problems() -> None:
    assert problems() == []
    assert problems(replace(FACTS, views=(ViewSpec(8),))) == [
        ("", "nnclr needs 2 views, but the augmentation makes 1")
    ]
    ((_, text),) = problems(replace(FACTS, batch_size=1))
    assert "batch_size >= 2" in text


def test_warnings() -> None:
    assert warnings(queue_size=20) == []
    ((path, text),) = warnings(queue_size=11)
    assert path == "queue_size"
    assert text.startswith("11 supports are fewer than the 12 of a step")
    ((path, text),) = warnings(queue_size=60)
    assert path == "queue_size"
    assert text.endswith("set less, such as 7")


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"method\.predictor: .* width 3 .* 4; set both"):
        nnclr(predictor={**LN_HEAD, "out_dim": 3})
