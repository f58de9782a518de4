"""SimCLR as the engine drives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Component,
    ComponentConfig,
    Loss,
    LossInput,
    Preprocess,
    Progress,
    RunFacts,
    Slot,
    ViewSpec,
)
from sslkit.builtin.losses import InfoNCE, NTXent
from sslkit.builtin.mlp_head import MLPHead
from sslkit.builtin.simclr import SimCLR
from sslkit.nn.functional import nt_xent
from sslkit.randomness import SampleRandom

FIRST = Progress(0, 1, 1)


class SmallConvNet(Backbone):
    """Convolution, BatchNorm, ReLU, mean pooling."""

    def __init__(self, config: ComponentConfig, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.num_features = 6
        self.preprocess = Preprocess(image_size, image_size, "bilinear", (0.0,), (1.0,))
        self.net = nn.Sequential(
            nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features.flatten(1)


class NeedsLabels(Loss):
    """Stands for a supervised contrastive loss."""

    requires = frozenset({"labels"})

    def forward(self, inputs: LossInput) -> Tensor:
        assert inputs.labels is not None
        return inputs.labels.float().mean() + inputs.views[0].sum() * 0.0


class NeedsQueue(NeedsLabels):
    requires = frozenset({"negatives"})


def a_slot(cls: type[Component], name: str, **fields: Any) -> Slot[Any]:
    return Slot(cls, name, cls.Config(**fields), "sslkit", "0")


def facts(*sizes: int, batch_size: int = 4, num_classes: int | None = None) -> RunFacts:
    views = tuple(ViewSpec(size) for size in sizes)
    return RunFacts(64, 3, (8, 8), num_classes, batch_size, 16, 64, views)


def config(loss: type[Loss] = NTXent, **fields: Any) -> SimCLR.Config:
    """Fields of the loss, and those of the method's own that are named so."""
    own = {name: fields.pop(name) for name in ("passes", "loss_weight") if name in fields}
    head = a_slot(MLPHead, "mlp", out_dim=5)
    return SimCLR.Config(head=head, loss=a_slot(loss, loss.__name__.lower(), **fields), **own)


def method(loss: type[Loss] = NTXent, **loss_fields: Any) -> SimCLR:
    torch.manual_seed(0)
    network = SmallConvNet(ComponentConfig(), channels=3, image_size=8)
    return SimCLR(config(loss, **loss_fields), network, facts(8, 8))


def batch(num_views: int = 2, size: int = 4, labels: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.rand(size, 3, 8, 8, generator=generator) for _ in range(num_views))
    indices = torch.arange(size)
    return Batch(views, indices, SampleRandom(0, "method", 0, indices), labels)


def test_embeddings_have_one_row_per_image() -> None:
    simclr, data = method().eval(), batch()
    embeddings = simclr.embed(data)
    assert embeddings["features"].shape == (4, 2, 6)
    assert embeddings["z"].shape == (4, 2, 5)
    for view in (0, 1):
        features = simclr.encoder(data.views[view])
        torch.testing.assert_close(embeddings["features"][:, view], features)
        torch.testing.assert_close(embeddings["z"][:, view], simclr.head(features))


def test_batch_norm_sees_both_views_at_once() -> None:
    simclr, data = method(), batch()
    simclr.embed(data)
    norm = simclr.backbone.net[1]
    assert norm.num_batches_tracked == 1
    maps = simclr.backbone.net[0](torch.cat(data.views))
    torch.testing.assert_close(norm.running_mean, 0.1 * maps.mean(dim=(0, 2, 3)))


def test_per_view_passes_have_the_statistics_of_each_view() -> None:
    simclr, data = method(), batch()
    simclr.config = config(passes="per_view")
    embeddings = simclr.embed(data)
    norm = simclr.backbone.net[1]
    assert norm.num_batches_tracked == 2
    for view in (0, 1):
        features = simclr.backbone(data.views[view])
        torch.testing.assert_close(embeddings["features"][:, view], features)
        torch.testing.assert_close(embeddings["z"][:, view], simclr.head(features))


def test_per_view_passes_take_views_of_several_sizes() -> None:
    simclr, data = method(), batch()
    simclr.config = config(passes="per_view")
    small = replace(data, views=(data.views[0], data.views[1][..., :6, :6]))
    assert list(SimCLR.problems(simclr.config, facts(8, 6))) == []
    assert simclr.embed(small)["z"].shape == (4, 2, 5)


def test_loss_weight_multiplies_the_loss() -> None:
    simclr, data = method(temperature=0.2), batch()
    embeddings = simclr.embed(data)
    once = simclr.objective(embeddings, data, FIRST).loss
    simclr.config = config(loss_weight=2.0)
    assert simclr.objective(embeddings, data, FIRST).loss.item() == pytest.approx(2.0 * once.item())


def test_loss_is_nt_xent_of_the_two_views() -> None:
    simclr, data = method(temperature=0.2), batch()
    embeddings = simclr.embed(data)
    output = simclr.objective(embeddings, data, FIRST)
    z = embeddings["z"]
    torch.testing.assert_close(output.loss, nt_xent(z[:, 0], z[:, 1], 0.2))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in simclr.parameters())


def test_the_loss_is_named_with_its_input() -> None:
    """So that the engine can log what it says."""
    simclr, data = method(), batch()
    embeddings = simclr.embed(data)
    [(loss, given)] = simclr.objective(embeddings, data, FIRST).losses
    assert loss is simclr.loss
    assert torch.equal(torch.stack(given.views, dim=1), embeddings["z"])


def test_training_lowers_the_loss() -> None:
    simclr, data = method(), batch(size=8)
    optimizer = torch.optim.SGD(simclr.parameters(), lr=0.3)
    losses = []
    for _ in range(30):
        output = simclr.objective(simclr.embed(data), data, FIRST)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_three_views_and_another_loss() -> None:
    simclr, data = method(InfoNCE, temperature=0.2), batch(num_views=3)
    assert simclr.objective(simclr.embed(data), data, FIRST).loss.isfinite()


def test_labels_reach_a_loss_that_needs_them() -> None:
    simclr, data = method(NeedsLabels), batch(labels=torch.tensor([0, 1, 1, 0]))
    assert simclr.objective(
        simclr.embed(data), data, Progress(0, 1, 1)
    ).loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("loss", "given", "field", "message"),
    [
        (NTXent, facts(8), "", "makes 1"),
        (NTXent, facts(8, 4), "passes", r"views of one size, but the augmentation makes [8, 4] px"),
        (NTXent, facts(8, 8, batch_size=1), "", "batch_size >= 2"),
        (
            NeedsQueue,
            facts(8, 8),
            "loss",
            "needs further negatives, which this",
        ),
    ],
)
def test_problems(loss: type[Loss], given: RunFacts, field: str, message: str) -> None:
    ((path, text),) = SimCLR.problems(config(loss), given)
    assert path == field
    assert message in text


def test_no_problems() -> None:
    assert list(SimCLR.problems(config(), facts(8, 8))) == []
    assert list(SimCLR.problems(config(NeedsLabels), facts(8, 8, num_classes=3))) == []


def test_the_projection_layers_are_the_head() -> None:
    simclr = method().eval()
    features = torch.rand(4, simclr.backbone.num_features)
    first, last = simclr.projection_layers
    assert isinstance(list(first.children())[-1], torch.nn.ReLU), "SimCLR v2 fine-tunes from here"
    assert torch.equal(last(first(features)), simclr.head(features))
