"""BatchNorm in groups that are drawn by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moco_setup import BATCH, FACTS, make_batch, network, queue_moco, train
from sslkit_moco.batch_groups import random_order
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Batch
from sslkit.errors import RecipeError
from sslkit.nn.shared_statistics import RowGroups, in_groups, shareable_layers
from sslkit.randomness import SampleRandom

BOTH = pytest.mark.parametrize("symmetric", [False, True])


def groups(rows: int, count: int) -> RowGroups:
    return RowGroups(torch.arange(rows), count)


def source(size: int, epoch: int = 0, stream: str = "x") -> SampleRandom:
    return SampleRandom(3, stream, epoch, torch.arange(size) * 7 + 1)


@pytest.mark.parametrize(("rows", "count"), [(12, 3), (13, 4), (512, 8), (5, 5)])
def test_groups_are_even(rows: int, count: int) -> None:
    sizes = groups(rows, count).sizes
    assert len(sizes) == count
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


def test_the_order_holds_every_row_and_goes_by_image() -> None:
    random, moved = source(64), torch.randperm(64)
    order = random_order(random)
    assert torch.equal(order.sort().values, torch.arange(64))
    images = random.indices[order]
    assert torch.equal(random.select(moved).indices[random_order(random.select(moved))], images)
    for other in (source(64, epoch=1), source(64, stream="y")):
        assert not torch.equal(random_order(other), order)


def test_groups_are_uniform() -> None:
    """Two given images share one of 4 groups of 4 in 3 of 15 batches."""
    shared = 0
    for epoch in range(2000):
        drawn = random_order(source(16, epoch)).view(4, 4)
        shared += sum({2, 11} <= set(rows.tolist()) for rows in drawn)
    assert shared / 2000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_group_has_statistics_of_its_own(count: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    images = torch.randn(10, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(images)
    expected = torch.cat([norm(part) for part in images.split(groups(10, count).sizes)])
    (gradient,) = torch.autograd.grad(expected, images, upstream)
    with in_groups(shareable_layers(norm), groups(10, count)):
        found = norm(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, images, upstream)[0], gradient)


def test_equals_a_split_batch_norm() -> None:
    """lightly's (and the notebook's) layer takes every G-th image into a group."""
    batch_norm = pytest.importorskip("lightly.models.batchnorm")
    torch.manual_seed(0)
    split, norm = batch_norm.SplitBatchNorm(5, num_splits=4), nn.BatchNorm2d(5)
    images = torch.randn(12, 5, 3, 3)
    order = torch.cat([torch.arange(start, 12, 4) for start in range(4)])
    with in_groups(shareable_layers(norm), groups(12, 4)):
        found = norm(images[order])
    torch.testing.assert_close(found, split(images)[order])


def test_running_statistics_forget_as_without_groups() -> None:
    torch.manual_seed(0)
    whole, grouped = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    layers = shareable_layers(grouped)
    for _ in range(30):
        batch = torch.randn(400, 2) + 3.0
        whole(batch)
        with in_groups(layers, groups(400, 4)):
            grouped(batch)
    assert grouped.momentum == whole.momentum
    assert grouped.running_mean is not None
    assert grouped.running_var is not None
    torch.testing.assert_close(grouped.running_mean, whole.running_mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(grouped.running_var, whole.running_var, rtol=0.03, atol=0.0)


def test_outside_the_layers_are_what_they_were() -> None:
    """In evaluation and in fine-tuning of the encoder; names and weights do not change."""
    torch.manual_seed(0)
    plain, moco = network(batch_norm=True), queue_moco(batch_norm=True)
    images = torch.rand(9, 3, 8, 8, dtype=torch.float64)
    list(train(moco, range(1)))
    plain.double().load_state_dict(moco.encoder.state_dict())
    for mode in (False, True):
        torch.testing.assert_close(plain.train(mode)(images), moco.encoder.train(mode)(images))
    assert torch.equal(plain.net[1].running_var, moco.encoder.net[1].running_var)


# --- In the method --------------------------------------------------------------------------------


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of every BatchNorm that is computed."""
    seen: list[int] = []

    def recorded(inputs: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(len(inputs))
        return batch_norm(inputs, *args, **kwargs)  # type: ignore[arg-type]

    batch_norm = F.batch_norm
    monkeypatch.setattr(F, "batch_norm", recorded)
    return seen


def shuffled(batch: Batch, order: Tensor) -> Batch:
    return replace(
        batch,
        views=tuple(view[order] for view in batch.views),
        indices=batch.indices[order],
        random=batch.random.select(order),
    )


@BOTH
def test_an_image_embeds_alike_wherever_it_stands_in_the_batch(symmetric: bool) -> None:
    """Bit for bit, in training mode, with BatchNorm: groups go by image and not by position."""
    moco, batch = queue_moco(batch_norm=True, symmetric=symmetric), make_batch()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(5))
    plain, moved = moco.embed(batch), moco.embed(shuffled(batch, order))
    for name, value in plain.items():
        assert torch.equal(moved[name], value[order]), name


def test_statistics_are_those_of_the_groups() -> None:
    moco, batch = queue_moco(batch_norm=True), make_batch()
    found = moco.embed(batch)
    for rows in random_order(batch.random.substream("query", 0)).split(4):
        expected = moco.head(moco.backbone(batch.views[0][rows]))
        torch.testing.assert_close(found["query"][rows, 0], expected)
    whole = moco.head(moco.backbone(batch.views[0]))
    assert not torch.allclose(found["query"][:, 0], whole)


def test_keys_are_grouped_otherwise_than_queries() -> None:
    """On any number of devices, one included: the keys of a query's group are in several."""
    moco, batch = queue_moco(batch_norm=True), make_batch()
    keys = moco.embed(batch)["key"][:, 0]
    queries = random_order(batch.random.substream("query", 0)).split(4)
    by_key = random_order(batch.random.substream("key", 1)).split(4)
    for rows in by_key:
        torch.testing.assert_close(keys[rows], moco.teacher(batch.views[1][rows]))
    sets = [{frozenset(rows.tolist()) for rows in drawn} for drawn in (queries, by_key)]
    assert not sets[0] & sets[1]


def test_heads_are_grouped_too(sizes: list[int]) -> None:
    moco = queue_moco(batch_norm=True, head={"name": "mlp", "hidden_dim": 5, "out_dim": 4})
    moco.embed(make_batch())
    assert sizes == [4] * 3 * 3 * 2  # groups, layers, networks


def test_one_group_is_the_whole_batch(sizes: list[int]) -> None:
    moco = queue_moco(batch_norm=True, bn_groups=1)
    moco.embed(make_batch())
    assert sizes == [12, 12]
    assert type(moco.backbone.net[1]) is nn.BatchNorm2d


def test_networks_without_batch_norm_take_any_part() -> None:
    moco = queue_moco(batch_norm=False, bn_groups=4)
    assert moco.embed(make_batch().select(slice(0, 1)))["query"].shape == (1, 1, 4)


def test_micro_batches_keep_the_size_of_the_groups(sizes: list[int]) -> None:
    moco = queue_moco(batch_norm=True)
    moco.embed(make_batch().select(slice(0, 8)))
    assert sizes == [4] * 4
    with pytest.raises(RecipeError, match=r"bn_groups: a group has 4 images and a micro-batch 4"):
        moco.embed(make_batch().select(slice(0, 4)))


def test_batches_that_the_groups_do_not_divide(sizes: list[int]) -> None:
    moco = queue_moco(batch_norm=True, facts=replace(FACTS, batch_size=11))
    assert moco.embed(make_batch(size=11))["query"].shape == (11, 1, 4)
    assert sizes == [4, 4, 3] * 2


def test_the_memory_format_stays() -> None:
    moco, batch, seen = queue_moco(batch_norm=True), make_batch(), []
    moco.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    views = tuple(view.contiguous(memory_format=torch.channels_last) for view in batch.views)
    moco.embed(replace(batch, views=views))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_backbone_gives_the_same_and_compiles_once() -> None:
    """The graph only: the test needs no compiler."""
    eager, compiled = (queue_moco(batch_norm=True) for _ in range(2))
    compiled.backbone.compile(backend="eager", fullgraph=True)
    plain = [output.loss for output in train(eager, range(3))]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [output.loss for output in train(compiled, range(3))]
    torch.testing.assert_close(found, plain)
