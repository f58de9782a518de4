"""The loop that evaluators train networks with, against the loop written out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.nn.supervised import SupervisedTraining

Batch = tuple[Tensor, Tensor]


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 8, 5, generator=generator)
    return [(part, (part.sum(dim=1) > 0).long()) for part in images]


def rate(step: int) -> float:
    return 0.5 / (step + 1)


def network_and_optimizer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(1)
    network = nn.Linear(5, 2)
    groups = [{"params": [network.weight]}, {"params": [network.bias]}]
    return network, torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def test_it_is_the_loop_written_out_to_the_bit() -> None:
    network, optimizer = network_and_optimizer()

    def set_rules(step: int) -> None:
        for group, scale in zip(optimizer.param_groups, (0.1, 1.0), strict=True):
            group["lr"] = rate(step) * scale

    training = SupervisedTraining(
        optimizer, lambda batch: F.cross_entropy(network(batch[0]), batch[1]), set_rules
    )
    means = [training.epoch(data()) for _ in range(2)]
    assert training.finished == 12

    other, by_hand = network_and_optimizer()
    losses = []
    for step, (images, labels) in enumerate(data() * 2):
        for group, scale in zip(by_hand.param_groups, (0.1, 1.0), strict=True):
            group["lr"] = rate(step) * scale
        loss = F.cross_entropy(other(images), labels)
        by_hand.zero_grad()
        loss.backward()
        by_hand.step()
        losses.append(loss.detach())
    assert torch.equal(network.weight, other.weight)
    assert torch.equal(network.bias, other.bias)
    assert means == pytest.approx([float(sum(losses[:6])) / 6, float(sum(losses[6:])) / 6])
    assert means[1] < means[0]


def test_a_step_is_made_as_it_is_asked_for() -> None:
    network, optimizer = network_and_optimizer()
    read = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(data()):
            read.append(number)
            yield batch

    training = SupervisedTraining(optimizer, lambda batch: network(batch[0]).sum() * math.nan)
    steps = training.steps(batches())
    assert read == []
    with torch.no_grad():
        assert not next(steps).isfinite()
    assert read == [0]
    assert training.finished == 1


def test_no_batches_are_no_mean() -> None:
    _, optimizer = network_and_optimizer()
    with pytest.raises(ValueError, match="no batches to train on"):
        SupervisedTraining(optimizer, lambda batch: torch.zeros(())).epoch([])
