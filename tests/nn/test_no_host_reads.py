"""What runs at every step never waits for the device: on the meta device, which holds no data,
any value that is read back to Python raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import contrastive_accuracy_and_entropy, info_nce, nt_xent
from sslkit.nn.lars import LARS
from sslkit.nn.queue import FeatureQueue


@pytest.fixture(autouse=True)
def meta() -> object:
    with torch.device("meta"):
        yield


def test_reading_a_value_raises_here() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(1).item()


def test_losses_and_metrics() -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    queue = torch.randn(16, 8)
    loss = nt_xent(a, b, 0.1) + info_nce(a, b, None, 0.1, symmetric=True)
    (loss + info_nce(a, b, queue, 0.1)).backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert contrastive_accuracy_and_entropy(a, b, both_views=True).top1.shape == ()
    assert contrastive_accuracy_and_entropy(a, b, queue).entropy.shape == ()


@pytest.mark.parametrize("lr_in_buffer", [True, False])
def test_lars(lr_in_buffer: bool) -> None:
    network = nn.Linear(4, 3)
    optimizer = LARS(
        network.parameters(), lr=0.1, weight_decay=0.1, nesterov=True, lr_in_buffer=lr_in_buffer
    )
    for _ in range(2):
        network(torch.randn(2, 4)).sum().backward()
        optimizer.step()


def test_teacher_and_queue() -> None:
    network = nn.Linear(4, 3)
    EMATeacher(network, buffers="copy").update(network, 0.9)
    FeatureQueue(8, 4).push(torch.randn(5, 4))
