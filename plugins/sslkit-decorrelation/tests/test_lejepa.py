"""LeJEPA and SIGReg against closed values, the formula in loops, lightly, and the same directions
everywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from decorrelation_setup import (
    BATCH,
    FACTS,
    FIRST,
    SIDE,
    draw,
    make_batch,
    make_loss,
    make_method,
    method_slot,
    of_views,
    take_steps,
)
from sslkit_decorrelation import sigreg
from sslkit_decorrelation.directions import unit_directions
from sslkit_decorrelation.sigreg import epps_pulley
from torch import Tensor

from sslkit.api import LossInput, ViewSpec
from sslkit.randomness import SampleRandom

LOCAL = ViewSpec(6, "local")
CROPS = replace(FACTS, views=(ViewSpec(SIDE), LOCAL, ViewSpec(SIDE), LOCAL, LOCAL))
"""Two global views and three local ones, mixed."""
FEW = {"name": "sigreg", "directions": 16}


def statistic(of_t: Any) -> float:
    """The integral of |phi(t) - exp(-t²/2)|² exp(-t²/2) over [-3, 3], 17 points on either half."""
    total = 0.0
    for k in range(17):
        t = 3 * k / 16
        real, imaginary = of_t(t)
        apart = (real - math.exp(-t * t / 2)) ** 2 + imaginary**2
        total += (1 if k in (0, 16) else 2) * 3 / 16 * apart * math.exp(-t * t / 2)
    return total


def in_loops(z: Tensor, along: Tensor) -> Tensor:
    """SIGReg of one view along directions (D, S), number by number."""
    total = torch.zeros((), dtype=torch.float64)
    for s in range(along.shape[1]):
        x = [z[n] @ along[:, s] for n in range(len(z))]
        for k in range(17):
            t = 3 * k / 16
            real = sum(torch.cos(t * each) for each in x) / len(x)
            imaginary = sum(torch.sin(t * each) for each in x) / len(x)
            weight = (1 if k in (0, 16) else 2) * 3 / 16 * math.exp(-t * t / 2)
            apart = (real - math.exp(-t * t / 2)) ** 2 + imaginary**2
            total = total + len(x) * weight * apart
    return total / along.shape[1]


# --- The statistic --------------------------------------------------------------------------------


def test_a_collapse_to_zero_has_no_gradient() -> None:
    z = torch.zeros(50, 6, dtype=torch.float64, requires_grad=True)
    loss = of_views(make_loss("sigreg"), z)
    assert loss.item() / 50 == pytest.approx(0.40205, abs=5e-6)
    assert not torch.autograd.grad(loss, z)[0].any()


@pytest.mark.parametrize(
    ("deviation", "mean", "expected"), [(0.5, 0, 0.15119), (2, 0, 0.23609), (1, 1, 0.44434)]
)
def test_other_distributions(deviation: float, mean: float, expected: float) -> None:
    """Per sample, of N(mean, deviation²); of B samples (1 - |phi|²) comes on top, whatever B."""

    def of_t(t: float) -> tuple[float, float]:
        size = math.exp(-((deviation * t) ** 2) / 2)
        return size * math.cos(mean * t), size * math.sin(mean * t)

    assert statistic(of_t) == pytest.approx(expected, abs=5e-6)
    quantiles = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    found = epps_pulley((deviation * quantiles + mean)[:, None]).item() / 20000
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch", [16, 60])
def test_normal_samples(batch: int) -> None:
    """1.05246 on average, whatever B."""
    found = epps_pulley(draw(batch, 6000, seed=3))
    error = found.std().item() / 6000**0.5
    assert found.mean().item() == pytest.approx(1.05246, abs=4 * error)
    assert error < 0.02


def test_value_and_gradient_in_loops() -> None:
    views = draw(2, 5, 4).requires_grad_()
    loss = make_loss("sigreg", directions=16)
    random = SampleRandom(0, "method", 0, torch.arange(5))
    along = unit_directions(LossInput(views.unbind(), random=random, progress=FIRST), "sigreg", 16)
    ours = of_views(loss, *views)
    slow = sum(in_loops(z, along) for z in views) / 2
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(found, views)[0] for found in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_directions_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same value and gradient, and nothing kept of images x directions x knots."""
    loss, found, kept = make_loss("sigreg", directions=16), [], []

    def note(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for at_once in (sigreg._AT_ONCE, 40 * 17 * 3):
        monkeypatch.setattr(sigreg, "_AT_ONCE", at_once)
        kept.append(0)
        views = draw(2, 40, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            value = of_views(loss, *views)
        found.append((value.detach(), *torch.autograd.grad(value, views)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)
    assert kept[0] > 2 * 2 * 40 * 16 * 17
    assert kept[1] < 3 * 2 * 40 * 16


def test_the_statistic_equals_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same directions; the constants are its own."""
    lejepa = pytest.importorskip("lightly.loss.lejepa_loss")
    along = torch.nn.functional.normalize(draw(6, 32), dim=0).float()
    theirs = lejepa.SIGReg(num_vectors=32)
    monkeypatch.setattr(theirs, "_generate_unit_vectors", lambda *a, **k: along)
    z = draw(40, 6, seed=1).float()
    torch.testing.assert_close(epps_pulley(z @ along).mean(), theirs(z))


# --- The directions -------------------------------------------------------------------------------


def directions(step: int = 0, seed: int = 0, rows: int = 5, count: int = 8) -> Tensor:
    random = SampleRandom(seed, "method", 0, torch.arange(rows))
    given = LossInput((draw(rows, 7),), random=random, progress=replace(FIRST, step=step))
    return unit_directions(given, "sigreg", count)


def test_directions_follow_from_seed_stream_and_step_alone() -> None:
    first = directions()
    torch.testing.assert_close(first.norm(dim=0), torch.ones(8, dtype=torch.float64))
    assert torch.equal(first, directions(rows=3))  # whatever the images, and how many
    assert torch.equal(first[:, :3], directions(count=3))
    for other in (directions(step=1), directions(seed=1)):
        assert not torch.isclose(first, other).any()
    torch.manual_seed(1)  # no generator has a part
    assert torch.equal(first, directions())


def test_directions_are_uniform() -> None:
    many = directions(count=20000)
    assert many.mean(dim=1).abs().max() < 0.02
    torch.testing.assert_close(many @ many.T / 20000, torch.eye(7).double() / 7, atol=0.01, rtol=0)
    fourth = (many**4).mean(dim=1) * 7 * 9 / 3  # of a uniform direction 3 / (D (D + 2))
    torch.testing.assert_close(fourth, torch.ones(7).double(), atol=0.05, rtol=0)


def test_without_random_numbers_it_says_so() -> None:
    with pytest.raises(ValueError, match="sigreg needs the random numbers of the images"):
        make_loss("sigreg")(LossInput((draw(4, 3),)))


# --- The method -----------------------------------------------------------------------------------


def test_views_of_a_size_pass_together() -> None:
    method = make_method("lejepa", CROPS, loss=FEW)
    batch = make_batch(facts=CROPS)
    found = method.embed(batch)
    assert found["z"].shape == (BATCH, 5, 4)
    assert found["features"].shape == (BATCH, 2, 6)
    for alike in ((0, 2), (1, 3, 4)):
        features = method.backbone(torch.cat([batch.views[place] for place in alike]))
        z = method.projector(features).chunk(len(alike))
        for place, rows in zip(alike, z, strict=True):
            torch.testing.assert_close(found["z"][:, place], rows)


def test_the_distance_is_from_the_mean_of_global_views() -> None:
    method = make_method("lejepa", CROPS, loss=FEW, loss_weight=0.2)
    z = draw(BATCH, 5, 4)
    output = method.objective({"z": z}, make_batch(facts=CROPS), FIRST)
    centre = (z[:, 0] + z[:, 2]) / 2
    distance = sum(((z[:, v] - centre) ** 2).mean() for v in range(5)) / 5
    regulariser = of_views(method.loss, *z.unbind(1))
    torch.testing.assert_close(output.loss, 0.2 * regulariser + 0.8 * distance)
    torch.testing.assert_close(output.metrics["invariance"], distance)


def test_the_whole_equals_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    lejepa = pytest.importorskip("lightly.loss.lejepa_loss")
    method = make_method("lejepa", CROPS, loss=FEW)
    z, batch = draw(BATCH, 5, 4).float(), make_batch(facts=CROPS)
    along = unit_directions(
        LossInput((z[:, 0],), random=batch.random, progress=FIRST), "sigreg", 16
    )
    theirs = lejepa.LeJEPALoss(lambda_param=0.05)
    monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *a, **k: along)
    expected = theirs(
        local_proj=z[:, [1, 3, 4]].transpose(0, 1), global_proj=z[:, [0, 2]].transpose(0, 1)
    )
    torch.testing.assert_close(method.objective({"z": z}, batch, FIRST).loss, expected)


@pytest.mark.parametrize("name", ["lejepa", "visreg"])
def test_training_goes_on_after_a_stop(name: str) -> None:
    """The same steps with a stop between them: directions are those of their step."""
    fields = {"loss": {"name": {"lejepa": "sigreg"}.get(name, name), "directions": 16}}
    whole, first, second = (make_method(name, CROPS, **fields) for _ in range(3))
    losses = take_steps(whole, 4, CROPS)
    assert take_steps(first, 2, CROPS) == losses[:2]
    second.load_state_dict(first.state_dict())
    assert take_steps(second, 4, CROPS, start=2) == losses[2:]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_a_global_view_is_asked_for() -> None:
    slot = method_slot("lejepa")
    said = slot.cls.problems(slot.config, replace(FACTS, views=(LOCAL, LOCAL)))
    assert [text for _, text in said] == [
        "needs a view of role global, to whose mean all views are pulled; the views are local, "
        "local"
    ]
