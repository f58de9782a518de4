"""Batch statistics: those of all images, whatever a layer held before, and nothing else changed."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from sslkit.nn.batch_norm import calibrate_batch_norm, has_batch_statistics, kept_batch_statistics


def images(count: int) -> Tensor:
    """Each brighter than the one before, so that batches differ."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return noise * torch.arange(1.0, count + 1.0)[:, None, None, None]


def deep_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }


def test_statistics_are_those_of_all_images() -> None:
    layer, data = nn.BatchNorm2d(3), images(23)
    calibrate_batch_norm(nn.Sequential(layer), data.split(5))
    torch.testing.assert_close(layer.running_mean, data.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(layer.running_var, data.var(dim=(0, 2, 3)))
    assert layer.num_batches_tracked == 0


def test_deep_layers_see_what_training_would_show_them() -> None:
    """Torch's own cumulative average (momentum None) over equal batches has the same means."""
    network, data = deep_net(), images(12)
    torchs = copy.deepcopy(network).eval()
    for layer in torchs:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for batch in data.split(4):
            torchs(batch)
    calibrate_batch_norm(network, data.split(4))
    for ours, theirs in ((network[1], torchs[1]), (network[6], torchs[6])):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_what_was_there_before_has_no_influence_and_nothing_else_changes() -> None:
    network, data = deep_net(), images(9)
    network[6].eval()  # flags are put back one by one
    before, modes = state(network), [module.training for module in network.modules()]
    calibrate_batch_norm(network, data.split(4))  # 4 + 4 + 1: one row has no statistics
    statistics = {f"{i}.running_{what}" for i in (1, 6) for what in ("mean", "var")}
    assert changed(before, network) == statistics
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert network[1].momentum == network[6].momentum == 0.1
    once = state(network)
    calibrate_batch_norm(network, data.split(4))
    assert changed(once, network) == set()


def test_a_failure_leaves_modes_and_hooks_as_they_were() -> None:
    network = deep_net()
    before = state(network)
    with pytest.raises(RuntimeError):
        calibrate_batch_norm(network, [images(4), torch.ones(4, 7, 8, 8)])
    assert changed(before, network) == set()
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_statistics_are_put_back_to_the_bit() -> None:
    network = deep_net()
    network(images(6))  # running statistics of a step
    before, tensors = state(network), [id(buffer) for buffer in network.buffers()]
    with suppress(KeyboardInterrupt), kept_batch_statistics(network):
        calibrate_batch_norm(network, images(9).split(4))
        assert changed(before, network)
        raise KeyboardInterrupt
    assert changed(before, network) == set()
    assert [id(buffer) for buffer in network.buffers()] == tensors


class FrozenNorms(nn.Sequential):
    """Keeps its BatchNorm in evaluation mode while it is trained."""

    def train(self, mode: bool = True) -> FrozenNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.LayerNorm(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(FrozenNorms(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
    ],
    ids=["no BatchNorm", "no running statistics", "frozen"],
)
def test_no_image_is_read_where_nothing_needs_it(network: nn.Module) -> None:
    def batches() -> Tensor:
        raise AssertionError("no image needs to be read")

    before = state(network)
    assert not has_batch_statistics(network)
    calibrate_batch_norm(network, iter(batches, None))
    assert changed(before, network) == set()


def test_float32_is_float32() -> None:
    """TF32 has 10 bits of mantissa, and torch takes it for convolutions on a GPU by default."""
    seen = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return images

    assert torch.backends.cudnn.allow_tf32
    calibrate_batch_norm(nn.Sequential(Watching(), nn.BatchNorm2d(3)), [images(4)])
    assert seen == [(False, "highest")]
    assert torch.backends.cudnn.allow_tf32
