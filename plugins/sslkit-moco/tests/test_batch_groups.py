"""BatchNorm in groups that are drawn by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moco_setup import BATCH, FACTS, make_batch, network, queue_moco
from sslkit_moco.batch_groups import (
    has_batch_norm,
    in_groups,
    random_groups,
    slow_running_statistics,
)
from torch import Tensor, nn

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch
from sslkit.randomness import SampleRandom

BOTH = pytest.mark.parametrize("symmetric", [False, True])


def source(size: int, epoch: int = 0, stream: str = "x") -> SampleRandom:
    return SampleRandom(3, stream, epoch, torch.arange(size) * 7 + 1)


@pytest.mark.parametrize(("size", "count"), [(12, 3), (13, 4), (512, 8), (5, 5)])
def test_groups_are_even_and_hold_every_row_once(size: int, count: int) -> None:
    groups = random_groups(source(size), count)
    assert len(groups) == count
    sizes = [len(rows) for rows in groups]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(size))


def test_groups_change_with_epoch_and_purpose() -> None:
    drawn = [source(64), source(64, epoch=1), source(64, stream="y")]
    orders = [torch.cat(random_groups(random, 8)) for random in drawn]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_groups_are_uniform() -> None:
    """Two given images share one of 4 groups of 4 in 3 of 15 batches."""
    shared = 0
    for epoch in range(2000):
        groups = random_groups(source(16, epoch), 4)
        shared += sum({2, 11} <= set(rows.tolist()) for rows in groups)
    assert shared / 2000 == pytest.approx(0.2, abs=0.03)


def test_every_group_is_a_pass_of_its_own() -> None:
    torch.manual_seed(0)
    images = torch.rand(7, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    groups = [torch.tensor([5, 0, 3]), torch.tensor([1, 6]), torch.tensor([4, 2])]
    seen = []

    def network(part: Tensor) -> tuple[Tensor, Tensor]:
        assert part.is_contiguous(memory_format=torch.channels_last)
        seen.append(len(part))
        return part.mean(dim=(2, 3)), part - part.mean(dim=0)

    means, centred = in_groups(network, images, groups)
    assert seen == [3, 2, 2]
    torch.testing.assert_close(means, images.mean(dim=(2, 3)))
    for rows in groups:
        torch.testing.assert_close(centred[rows], images[rows] - images[rows].mean(dim=0))


def test_equals_a_split_batch_norm() -> None:
    """lightly's (and the notebook's) layer takes every G-th image into a group."""
    batch_norm = pytest.importorskip("lightly.models.batchnorm")
    torch.manual_seed(0)
    split = batch_norm.SplitBatchNorm(5, num_splits=4)
    plain = nn.BatchNorm2d(5)
    images = torch.randn(12, 5, 3, 3)
    groups = [torch.arange(start, 12, 4) for start in range(4)]
    (found,) = in_groups(lambda part: (plain(part),), images, groups)
    torch.testing.assert_close(found, split(images))


def test_running_statistics_forget_as_without_groups() -> None:
    torch.manual_seed(0)
    whole, grouped = nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2))
    slow_running_statistics(grouped, 4)
    for _ in range(30):
        batch = torch.randn(400, 2) + 3.0
        whole(batch)
        for part in batch.chunk(4):
            grouped(part)
    torch.testing.assert_close(grouped[0].running_mean, whole.running_mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(grouped[0].running_var, whole.running_var, rtol=0.03, atol=0.0)


# --- In the method --------------------------------------------------------------------------------


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
    groups = random_groups(batch.random.substream("query", 0), 3)
    assert [len(rows) for rows in groups] == [4, 4, 4]
    for rows in groups:
        expected = moco.head(moco.backbone(batch.views[0][rows]))
        torch.testing.assert_close(found["query"][rows, 0], expected)
    whole = moco.head(moco.backbone(batch.views[0]))
    assert not torch.allclose(found["query"][:, 0], whole)


def test_keys_are_grouped_otherwise_than_queries() -> None:
    """On any number of devices, one included: the keys of a query's group are in several."""
    moco, batch = queue_moco(batch_norm=True), make_batch()
    keys = moco.embed(batch)["key"][:, 0]
    drawn = {
        purpose: random_groups(batch.random.substream(*purpose), 3)
        for purpose in (("query", 0), ("key", 1))
    }
    for rows in drawn["key", 1]:
        torch.testing.assert_close(keys[rows], moco.teacher(batch.views[1][rows]))
    sets = [{frozenset(rows.tolist()) for rows in groups} for groups in drawn.values()]
    assert not sets[0] & sets[1]


def test_one_group_is_the_whole_batch() -> None:
    moco, batch = queue_moco(batch_norm=True, bn_groups=1), make_batch()
    found = moco.embed(batch)
    torch.testing.assert_close(found["query"][:, 0], moco.head(moco.backbone(batch.views[0])))
    assert moco.backbone.net[1].momentum == 0.1


def test_networks_without_batch_norm_are_not_split() -> None:
    assert not has_batch_norm(network(batch_norm=False))
    moco = queue_moco(batch_norm=False, bn_groups=4)
    calls = []
    moco.backbone.register_forward_hook(lambda *_: calls.append(1))
    moco.embed(make_batch())
    assert len(calls) == 1


def test_micro_batches_keep_the_size_of_the_groups() -> None:
    moco, sizes = queue_moco(batch_norm=True), []
    moco.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    moco.embed(make_batch().select(slice(0, 8)))
    assert sizes == [4, 4]
    with pytest.raises(RecipeError, match=r"bn_groups: a group has 4 images and a micro-batch 4"):
        moco.embed(make_batch().select(slice(0, 4)))


def test_batches_that_the_groups_do_not_divide() -> None:
    facts = replace(FACTS, batch_size=11)
    moco, sizes = queue_moco(batch_norm=True, facts=facts), []
    moco.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    assert moco.embed(make_batch(size=11))["query"].shape == (11, 1, 4)
    assert sorted(sizes) == [3, 4, 4]
