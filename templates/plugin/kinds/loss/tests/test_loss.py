"""Values that can be worked out by hand, and what the loss must not depend on."""

from __future__ import annotations

import pytest
import torch
from sslkit.api import LossInput
from torch import Tensor

from sslkit_newname.loss import NewName


def loss(*views: Tensor, weight: float = 1.0, t: float = 2.0) -> Tensor:
    config = NewName.Config.model_validate({"weight": weight, "t": t})
    found: Tensor = NewName(config)(LossInput(views))
    return found


def test_equal_embeddings_give_zero() -> None:
    equal = torch.ones(6, 4)
    assert loss(equal, equal).item() == pytest.approx(0.0, abs=1e-6)


def test_orthogonal_images_give_the_potential_of_their_distance() -> None:
    images = torch.eye(4, 8)  # squared distances of 2, views equal
    assert loss(images, images, weight=0.5, t=3.0).item() == pytest.approx(-0.5 * 3.0 * 2.0)


def test_opposite_views_are_as_far_apart_as_can_be() -> None:
    images = torch.eye(4, 8)
    assert loss(images, -images, weight=0.0).item() == pytest.approx(4.0)


def test_three_views_are_the_mean_over_their_pairs() -> None:
    a, b, c = torch.randn(3, 6, 4).unbind()
    pairs = [loss(a, b), loss(a, c), loss(b, c)]
    torch.testing.assert_close(loss(a, b, c), torch.stack(pairs).mean())


def test_scale_and_order_of_the_batch_do_not_matter() -> None:
    a, b = torch.randn(2, 8, 5).unbind()
    order = torch.randperm(8)
    torch.testing.assert_close(loss(7.0 * a[order], 0.3 * b[order]), loss(a, b))


def test_the_gradient_is_finite_where_embeddings_are_equal() -> None:
    equal = torch.ones(4, 3, requires_grad=True)
    loss(equal, equal).backward()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()
