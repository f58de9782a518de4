"""Linear classifiers by SGD, a grid at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sslkit.nn import standardised
from sslkit.nn.linear_sgd import fit_by_sgd
from sslkit.nn.standardised import Standardised, feature_scale
from sslkit.randomness import Order

EPOCHS, BATCH, SEED = 3, 16, 11


def rows(num: int = 70) -> Standardised:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 3
    features = torch.eye(3, 6)[labels] + torch.randn(num, 6, generator=generator)
    return Standardised(features, labels, *feature_scale(features), torch.device("cpu"))


def by_torch(data: Standardised, lr: float, weight_decay: float) -> tuple[Tensor, Tensor]:
    """The same training by torch.optim.SGD and autograd."""
    ((x, y),) = data.blocks()
    linear = nn.Linear(6, 3)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    groups = [
        {"params": [linear.weight], "weight_decay": weight_decay},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    steps = len(data) // BATCH
    for epoch in range(EPOCHS):
        order = Order(SEED, epoch, len(data))[:]
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            done = (epoch * steps + step) / (EPOCHS * steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(x[batch]), y[batch]).backward()
            optimizer.step()
    return linear.weight.detach(), linear.bias.detach()


@pytest.mark.parametrize("block_rows", [1000, 20])
def test_each_of_the_grid_is_what_torch_trains_alone(
    monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(standardised, "_BLOCK_ELEMENTS", 6 * block_rows)
    data = rows()
    assert data.fits == (block_rows == 1000)
    lr, decay = [0.5, 0.5, 0.01], [0.0, 0.1, 0.01]
    found = fit_by_sgd(
        data, 3, lr=lr, weight_decay=decay, epochs=EPOCHS, batch_size=BATCH, seed=SEED
    )
    monkeypatch.undo()
    for problem in range(3):
        weight, bias = by_torch(data, lr[problem], decay[problem])
        torch.testing.assert_close(found.weight[problem], weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.bias[problem], bias, atol=1e-5, rtol=1e-4)


def test_one_that_diverges_is_zero_and_disturbs_no_other() -> None:
    data = rows()
    settings = {"epochs": 4, "batch_size": 70, "seed": 0}
    alone = fit_by_sgd(data, 3, lr=[0.1], weight_decay=[0.0], **settings)
    beside = fit_by_sgd(data, 3, lr=[0.1, 1e30], weight_decay=[0.0, 1e30], **settings)
    torch.testing.assert_close(beside.weight[0], alone.weight[0])
    assert not beside.weight[1].any()
    assert beside.predict_all(torch.randn(5, 6))[1].tolist() == [0] * 5


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    data = rows().select(torch.arange(12))
    settings = {"lr": [0.1], "weight_decay": [0.0], "epochs": 5, "seed": 0}
    small = fit_by_sgd(data, 3, batch_size=4096, **settings)
    exact = fit_by_sgd(data, 3, batch_size=12, **settings)
    assert torch.equal(small.weight, exact.weight)
    assert small.weight.any()
