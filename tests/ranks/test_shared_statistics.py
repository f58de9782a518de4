"""BatchNorm over ranks against torch's own on one process, in double precision: values, gradients,
running statistics, for every kind of layer, also those whose class does more than normalise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from sslkit.nn.shared_statistics import RowGroups, in_groups, over_ranks, shareable_layers
from sslkit.parallel.world import World
from tests.ranks.forked import on_ranks


class Doubled(nn.BatchNorm2d):
    """Somebody's layer, which calls torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs).relu()


class OwnMaths(nn.BatchNorm2d):
    """Somebody's layer, which does not."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(dim=(0, 2, 3), keepdim=True)


IMAGES, ROWS, SERIES, VOLUMES = (8, 3, 5, 5), (8, 6), (8, 6, 4), (8, 3, 2, 3, 4)
CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], bool]] = {
    "images": (nn.BatchNorm2d, IMAGES, {}, True),
    "rows": (nn.BatchNorm1d, ROWS, {}, True),
    "one row a rank": (nn.BatchNorm1d, (2, 6), {}, True),
    "series": (nn.BatchNorm1d, SERIES, {}, True),
    "volumes": (nn.BatchNorm3d, VOLUMES, {}, True),
    "cumulative": (nn.BatchNorm2d, IMAGES, {"momentum": None}, True),
    "without affine": (nn.BatchNorm2d, IMAGES, {"affine": False}, True),
    "without running statistics": (
        nn.BatchNorm2d, IMAGES, {"track_running_stats": False}, True,
    ),
    "the same, evaluated": (nn.BatchNorm2d, IMAGES, {"track_running_stats": False}, False),
    "evaluated": (nn.BatchNorm2d, IMAGES, {}, False),
    "with an activation": (BatchNormAct2d, IMAGES, {}, True),
    "somebody's": (Doubled, IMAGES, {}, True),
    "torch's synchronised": (nn.SyncBatchNorm, IMAGES, {}, True),
}  # fmt: skip


def passed(layer: nn.Module, x: Tensor, upstream: Tensor, world: World | None) -> dict[str, Tensor]:
    """Everything that comes of two passes, of all rows and summed over ranks."""
    layers = [] if world is None else shareable_layers(layer)
    if world is not None:
        x, upstream = x.chunk(world.size)[world.rank], upstream.chunk(world.size)[world.rank]
    for _ in range(2):
        layer.zero_grad()
        x = x.detach().clone().requires_grad_()
        with over_ranks(layers, world and world.group):
            y = layer(x)
        y.backward(upstream)
    assert x.grad is not None
    rows = {"output": y.detach(), "input gradient": x.grad}
    sums = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    if world is not None:
        rows = {name: world.gather(value) for name, value in rows.items()}
        sums = {name: world.sum(value) for name, value in sums.items()}
    return {**rows, **sums, **{f"buffer {n}": b.clone() for n, b in layer.named_buffers()}}


def made(cls: Any, shape: tuple[int, ...], options: dict[str, Any], training: bool) -> Any:
    torch.manual_seed(0)
    layer = cls(shape[1], **options).double().train(training)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return layer, torch.randn(shape).double(), torch.randn(shape).double()


def distances(world: World) -> dict[str, float]:
    found = {}
    for name, (cls, *rest) in CASES.items():
        layer, x, upstream = made(cls, *rest)
        alone = nn.BatchNorm2d(3).double() if cls is nn.SyncBatchNorm else copy.deepcopy(layer)
        alone.load_state_dict(layer.state_dict())
        expected = passed(alone, x, upstream, None)
        got = passed(layer, x, upstream, world)
        assert got.keys() == expected.keys(), name
        found[name] = max(float((got[k] - expected[k]).abs().max()) for k in expected)
    return found


def test_layers_of_every_kind() -> None:
    for found in on_ranks(distances):
        assert isinstance(found, dict), found
        for name, distance in found.items():
            assert distance < 1e-12, name


def far_from_zero(world: World) -> tuple[float, float]:
    """Errors of the scale's gradient in float32, ours and that of torch on one process."""
    layer, x, upstream = made(nn.BatchNorm2d, IMAGES, {}, True)
    x = 1000 + 0.01 * x
    exact = passed(copy.deepcopy(layer), x, upstream, None)["weight"]
    layer, x, upstream = layer.float(), x.float(), upstream.float()
    alone = passed(copy.deepcopy(layer), x, upstream, None)["weight"]
    shared = passed(layer, x, upstream, world)["weight"]
    return float((shared - exact).abs().max()), float((alone - exact).abs().max())


def test_values_far_from_zero() -> None:
    ours, torchs = on_ranks(far_from_zero)[0]
    assert ours < 2 * torchs


def uneven(world: World) -> float:
    """Three groups of eight rows, of which rank 0 has none of the last, cumulative averages."""
    order = torch.tensor([0, 4, 5, 1, 2, 3, 6, 7])
    layer, x, _ = made(nn.BatchNorm1d, ROWS, {"momentum": None}, True)
    alone, n = copy.deepcopy(layer), len(x) // world.size
    with in_groups(shareable_layers(alone), RowGroups(order, 3)):
        expected = alone(x[order])[order.argsort()]
    layers, share = shareable_layers(layer), x.chunk(world.size)[world.rank]
    groups = RowGroups(order, 3, world.rank * n, n)
    with over_ranks(layers, world.group), in_groups(layers, groups):
        got = world.gather(layer(share).detach())
    buffers = zip(layer.buffers(), alone.buffers(), strict=True)
    return max(float((a - b).abs().max()) for a, b in [(got, expected), *buffers])


def test_groups_of_unequal_size() -> None:
    for found in on_ranks(uneven):
        assert found < 1e-12


def rows_of_one(world: World, idle: int) -> dict[str, float]:
    """Distances from one process, where one of two ranks has no rows."""
    layer, x, upstream = made(nn.BatchNorm1d, ROWS, {}, True)
    alone = copy.deepcopy(layer)
    expected = alone(x)
    expected.backward(upstream)
    layers, mine = shareable_layers(layer), slice(0, 0 if world.rank == idle else None)
    with over_ranks(layers, world.group):
        got = layer(x[mine])
    got.backward(upstream[mine])
    pairs = {"output": (got, expected[mine])}
    pairs |= {
        n: (world.sum(p.grad), alone.get_parameter(n).grad) for n, p in layer.named_parameters()
    }
    pairs |= {n: (buffer, alone.get_buffer(n)) for n, buffer in layer.named_buffers()}
    return {n: float((a - b).abs().sum()) for n, (a, b) in pairs.items()}


@pytest.mark.parametrize("idle", [0, 1])
def test_a_rank_without_rows_takes_part(idle: int) -> None:
    """Such as one on which no patch is masked."""
    for found in on_ranks(lambda world: rows_of_one(world, idle)):
        assert isinstance(found, dict), found
        assert max(found.values()) < 1e-12, found


def refused(world: World, cls: Any, shape: tuple[int, ...], groups: int) -> str:
    layer = cls(shape[1])
    layers = shareable_layers(layer)
    whole = RowGroups(torch.arange(world.size), groups, world.rank, 1)
    with over_ranks(layers, world.group), in_groups(layers, whole):
        try:
            layer(torch.zeros(shape))
        except (TypeError, ValueError) as error:
            return str(error)
    return "taken"


@pytest.mark.parametrize(
    ("cls", "shape", "groups", "message"),
    [
        (OwnMaths, (4, 3, 2, 2), 1, "without torch.nn.functional.batch_norm"),
        (nn.BatchNorm1d, (1, 6), 2, "more than 1 value per channel"),
    ],
)
def test_what_cannot_be_shared(cls: Any, shape: tuple[int, ...], groups: int, message: str) -> None:
    for found in on_ranks(lambda world: refused(world, cls, shape, groups)):
        assert message in found
