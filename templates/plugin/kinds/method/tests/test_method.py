"""The loss on cases that can be worked out by hand, the gradients, and the teacher."""

from __future__ import annotations

import pytest
import torch
from sslkit import installed_components
from sslkit.api import Batch, Progress, RunFacts, ViewSpec, resolve_component
from sslkit.randomness import SampleRandom
from torch.nn.functional import cosine_similarity

from sslkit_newname.method import NewName, disagreement

FACTS = RunFacts(
    num_images=64,
    channels=1,
    image_size=(16, 16),
    num_classes=None,
    batch_size=8,
    steps_per_epoch=8,
    total_steps=80,
    views=(ViewSpec(16), ViewSpec(16)),
)
START = Progress(step=0, total_steps=80, steps_per_epoch=8)


def method(momentum: float = 0.9) -> NewName:
    block = {"name": "timm", "model": "test_resnet", "normalize": "none"}
    found = resolve_component(installed_components(), "backbone", block)
    config = NewName.Config.model_validate({"teacher_momentum": momentum})
    return NewName(config, found.build(channels=1, image_size=16), FACTS)


def batch() -> Batch:
    indices = torch.arange(8)
    views = (torch.rand(8, 1, 16, 16), torch.rand(8, 1, 16, 16))
    return Batch(views, indices, SampleRandom(0, "test", 0, indices))


@pytest.mark.parametrize(("second", "expected"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 2.0)])
def test_views_that_agree_are_orthogonal_or_are_opposite(second: float, expected: float) -> None:
    x, y = torch.eye(2, 4)
    targets = torch.stack([x, x]).expand(3, 2, 4)
    predictions = torch.stack([second * x + (1 - abs(second)) * y] * 2).expand(3, 2, 4)
    assert disagreement(5.0 * predictions, targets).item() == pytest.approx(expected)


def test_three_views_are_the_mean_over_pairs_of_different_ones() -> None:
    p, t = torch.randn(6, 3, 5), torch.randn(6, 3, 5)
    pairs = [(v, w) for v in range(3) for w in range(3) if v != w]
    cosines = [cosine_similarity(p[:, v], t[:, w]).mean() for v, w in pairs]
    torch.testing.assert_close(disagreement(p, t), 1.0 - torch.stack(cosines).mean())


def test_gradients_reach_the_online_network_and_never_the_teacher() -> None:
    trained = method()
    trained.objective(trained.embed(batch()), batch(), START).loss.backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name


def test_the_teacher_follows_by_one_minus_its_momentum() -> None:
    trained = method(momentum=0.75)
    online, taught = next(trained.parameters()), next(trained.teacher.parameters())
    with torch.no_grad():
        online.add_(1.0)
    before = taught.clone()
    trained.after_step(START.next(), None)
    torch.testing.assert_close(taught - before, torch.full_like(before, 0.25))
