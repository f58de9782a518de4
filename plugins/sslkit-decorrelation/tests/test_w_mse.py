"""W-MSE against closed values, the paper's formula in loops, and lightly."""

from __future__ import annotations

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
    make_loss,
    make_method,
    method_slot,
    of_views,
    steps_written_out,
    take_steps,
)
from sslkit_decorrelation.w_mse import whiten
from torch import Tensor

from sslkit.api import LossInput, RunFacts, ViewSpec
from sslkit.randomness import SampleRandom

NO_EPS = 1e-12
"""As good as the 0 of the paper's code."""


def whitened_in_loops(z: Tensor, eps: float) -> list[list[Tensor]]:
    """z (n, D) through the inverse of the Cholesky factor of its covariance, number by number."""
    count, width = z.shape
    means = [sum(z[n, d] for n in range(count)) / count for d in range(width)]
    x = [[z[n, d] - means[d] for d in range(width)] for n in range(count)]
    c: list[list[Any]] = [[0.0] * width for _ in range(width)]
    for i in range(width):
        for j in range(width):
            c[i][j] = sum(row[i] * row[j] for row in x) / (count - 1)
    variance = sum(c[d][d] for d in range(width)) / width
    for i in range(width):
        for j in range(width):
            c[i][j] = (1 - eps) * c[i][j] + (eps * variance if i == j else 0.0)
    factor: list[list[Any]] = [[0.0] * width for _ in range(width)]
    for i in range(width):
        for j in range(i + 1):
            rest = c[i][j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = rest**0.5 if i == j else rest / factor[j][j]
    white = []
    for row in x:
        found: list[Tensor] = []
        for i in range(width):
            found.append((row[i] - sum(factor[i][k] * found[k] for k in range(i))) / factor[i][i])
        white.append(found)
    return white


def in_loops(views: Sequence[Tensor], groups: Sequence[Sequence[int]], eps: float) -> Tensor:
    """Ermolov et al. 2021: the mean over pairs of views and images of |a - b|², of unit length."""
    units = []
    for z in views:
        rows: dict[int, list[Any]] = {}
        for group in groups:
            for n, row in zip(group, whitened_in_loops(z[list(group)], eps), strict=True):
                length = sum(w * w for w in row) ** 0.5
                rows[n] = [w / length for w in row]
        units.append(rows)
    loss, pairs = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(units)):
        for j in range(i):
            pairs += 1
            for n in units[i]:
                distance = ((a - b) ** 2 for a, b in zip(units[i][n], units[j][n], strict=True))
                loss = loss + sum(distance) / len(views[0])
    return loss / pairs


def groups_of(count: int, size: int, seed: int = 0, place: int = 0) -> list[list[int]]:
    """The groups of a batch of images 0, 1, ...: by the words of each."""
    words = SampleRandom(seed, "method", 0, torch.arange(count)).bits("groups", 2 * place + 2)
    first, second = words[:, 2 * place].tolist(), words[:, 2 * place + 1].tolist()
    order = sorted(range(count), key=lambda n: (first[n] << 31) | (second[n] >> 1))
    return [order[start : start + size] for start in range(0, count, size)]


def lower(width: int) -> Tensor:
    """(D, D): a triangle, which whitening by Cholesky undoes."""
    return draw(width, width, seed=2).tril(-1) + 2.0 * torch.eye(width).double()


# --- Whitening ------------------------------------------------------------------------------------


def test_whitened_embeddings_have_the_identity_as_covariance() -> None:
    z = draw(3, 40, 6) @ draw(6, 6, seed=1) + 5.0
    white = whiten(z, NO_EPS)
    for view in white:
        torch.testing.assert_close(view.T.cov(), torch.eye(6).double(), rtol=0, atol=1e-9)
        assert view.mean(dim=0).abs().max() < 1e-12
    # A product with a lower triangle changes nothing, and so does any scale.
    torch.testing.assert_close(whiten(z @ lower(6).T, NO_EPS), white, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(whiten(1e-6 * z, 0.1), whiten(z, 0.1), rtol=1e-8, atol=1e-10)


def test_eps_is_a_part_of_the_mean_variance() -> None:
    z = draw(30, 5) @ draw(5, 5, seed=1)
    c = z.T.cov()
    shrunk = 0.8 * c + 0.2 * c.diagonal().mean() * torch.eye(5).double()
    expected = (z - z.mean(dim=0)) @ torch.linalg.cholesky(shrunk).inverse().T
    torch.testing.assert_close(whiten(z, 0.2), expected)
    alone = (z - z.mean(dim=0)) / c.diagonal().mean().sqrt()
    torch.testing.assert_close(whiten(z, 1.0), alone)  # no whitening


def test_float32_embeddings_are_whitened_in_float64() -> None:
    """Dimensions that differ a thousandfold in deviation, and are nearly copies of each other."""
    z = draw(128, 64) @ draw(64, 64, seed=1) * torch.logspace(0, -3, 64, dtype=torch.float64)
    z = z.float().double()
    white = whiten(z.float(), NO_EPS)
    assert white.dtype == torch.float32
    torch.testing.assert_close(white, whiten(z, NO_EPS).float())


@pytest.mark.parametrize("case", ["equal", "one line", "few images", "dead dimension"])
def test_a_covariance_without_inverse_has_finite_numbers(case: str) -> None:
    z = draw(2, 12, 8)
    if case == "equal":
        z = torch.full_like(z, 0.3)
    elif case == "one line":
        z = z[..., :1].repeat(1, 1, 8)
    elif case == "few images":
        z = z[:, :3]
    else:
        z[..., 2] = 0.0
    z.requires_grad_()
    loss = of_views(make_loss("w_mse"), *z)
    assert 0.0 <= loss.item() <= 4.0
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()


# --- The loss -------------------------------------------------------------------------------------


def test_equal_and_unrelated_views() -> None:
    loss = make_loss("w_mse", group_size=32)
    z = draw(4096, 8)
    assert of_views(loss, z, z @ lower(8).T + 1.0).item() == pytest.approx(0, abs=1e-4)
    assert of_views(loss, z, draw(4096, 8, seed=1)).item() == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize("eps", [NO_EPS, 0.3])
@pytest.mark.parametrize("count", [2, 4])
def test_value_and_gradient_in_loops(count: int, eps: float) -> None:
    views = draw(count, 10, 3).requires_grad_()
    ours = of_views(make_loss("w_mse", group_size=5, eps=eps), *views)
    theirs = in_loops(views.unbind(), groups_of(10, 5), eps)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


def test_steps_in_loops() -> None:
    """Batches of 12 images in two groups, drawn by image; every view passes the head by itself, of
    which the method knows nothing here: it has no BatchNorm."""
    head = {**HEAD, "hidden_norm": "none", "out_dim": 3}
    method = make_method("w_mse", projector=head, loss={"name": "w_mse", "group_size": 6})
    batches = iter(range(3))

    def loss(views: Sequence[Tensor]) -> Tensor:
        words = make_batch(next(batches)).random.bits("groups", 2)
        order = ((words[:, 0] << 31) | (words[:, 1] >> 1)).tolist()
        ordered = sorted(range(BATCH), key=order.__getitem__)
        return in_loops(views, [ordered[:6], ordered[6:]], 1e-6)

    losses, state = steps_written_out(method, 3, loss)
    assert take_steps(method, 3) == pytest.approx(losses, rel=1e-8)
    for name, value in state.items():
        torch.testing.assert_close(method.state_dict()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("count", [2, 4])
def test_equals_lightly(count: int) -> None:
    """The paper's code, which lightly took over; one group, since its order is torch's."""
    losses = pytest.importorskip("lightly.loss")
    lightly = losses.WMSELoss(embedding_dim=8, w_size=32, num_samples=count).double()
    views = draw(count, 32, 8).requires_grad_()
    ours = of_views(make_loss("w_mse", group_size=32, eps=NO_EPS), *views)
    theirs = lightly(views.flatten(0, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


# --- The groups -----------------------------------------------------------------------------------


def test_groups_follow_the_images() -> None:
    """Not their places in the batch; others in another run, and for each division."""
    loss, views = make_loss("w_mse", group_size=6), draw(2, 24, 3)
    found = of_views(loss, *views)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    random = SampleRandom(0, "method", 0, order)
    turned = loss(LossInput(tuple(views[:, order]), random=random, progress=FIRST))
    torch.testing.assert_close(found, turned)
    assert of_views(loss, *views, seed=1) != found
    one, two = (in_loops(views.unbind(), groups_of(24, 6, place=p), 1e-6) for p in (0, 1))
    averaged = of_views(make_loss("w_mse", group_size=6, divisions=2), *views)
    torch.testing.assert_close(averaged, (one + two) / 2)


def test_groups_are_as_equal_as_can_be() -> None:
    views = draw(2, 17, 3)
    found = of_views(make_loss("w_mse", group_size=8), *views)
    ((*order,),) = groups_of(17, 17)
    torch.testing.assert_close(found, in_loops(views.unbind(), [order[:9], order[9:]], 1e-6))
    small = of_views(make_loss("w_mse"), *views)  # fewer than a group
    torch.testing.assert_close(small, in_loops(views.unbind(), [order], 1e-6))


def test_without_random_numbers_it_says_so() -> None:
    with pytest.raises(ValueError, match="w_mse needs the random numbers of the images"):
        make_loss("w_mse")(LossInput((draw(4, 3),) * 2))


# --- The method -----------------------------------------------------------------------------------


def test_views_pass_the_backbone_alone_and_the_projector_together() -> None:
    method, batch = make_method("w_mse"), make_batch()
    found = method.embed(batch)
    features = [method.backbone(view) for view in batch.views]
    torch.testing.assert_close(found["features"], torch.stack(features, dim=1))
    z = method.projector(torch.cat(features))
    torch.testing.assert_close(found["z"], torch.stack(z.chunk(2), dim=1))


def said_of(kind: str, facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = method_slot("w_mse", **fields)
    return list(getattr(slot.cls, kind)(slot.config, facts))


def test_a_loss_that_whitens_nothing_is_warned_of() -> None:
    for eps, count in ((1e-6, 0), (1.0, 1)):
        loss = make_loss("w_mse", eps=eps)
        said = list(type(loss).warnings(loss.config, FACTS))
        assert len(said) == count
    ((path, text),) = said
    assert path == "eps"
    assert text.startswith("1 whitens nothing")


def test_groups_that_are_too_small_are_warned_of() -> None:
    facts = replace(FACTS, batch_size=256)
    assert said_of("problems", facts) == []
    assert said_of("warnings", facts) == []
    wide = {"projector": {**HEAD, "out_dim": 65}}
    ((path, text),) = said_of("warnings", facts, **wide)
    assert path == "loss.group_size"
    assert text.startswith("128 images are whitened together in 65 dimensions")
    assert "130 or more" in text
    ((_, text),) = said_of("warnings", replace(FACTS, batch_size=100))
    assert text.startswith("100 images are whitened together in 64 dimensions")
    assert said_of("warnings", facts, loss={"name": "vicreg"}, **wide) == []  # has no groups
    ((_, text),) = said_of("problems", replace(facts, views=(ViewSpec(8),)))
    assert text.startswith("compares views of an image")
