"""What runs at every step never waits for the device: on the meta device, which holds no data,
any value that is read back to Python raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import contrastive_accuracy_and_entropy, info_nce, nt_xent, sup_con
from sslkit.nn.lars import LARS
from sslkit.nn.masking import block_masked, coarse_masked, split_patches
from sslkit.nn.patches import (
    gather_patches,
    hidden_patches,
    patchify,
    place_patches,
    unpatchify,
)
from sslkit.nn.prototypes import cross_entropy_of_views, pairs_of_views, sinkhorn
from sslkit.nn.queue import FeatureQueue
from sslkit.randomness import SampleRandom


@pytest.fixture(autouse=True)
def meta() -> object:
    with torch.device("meta"):
        yield


def test_reading_a_value_raises_here() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(1).item()


@pytest.mark.parametrize("chunk", [20, 10**6])
@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_losses_and_metrics(temperature: float, chunk: int) -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    queue, labels = torch.randn(16, 8), torch.zeros(4, dtype=torch.int64)
    losses = [
        nt_xent(a, b, temperature, chunk_elements=chunk),
        info_nce(a, b, None, temperature, symmetric=True, chunk_elements=chunk),
        info_nce(a, b, queue, temperature, chunk_elements=chunk),
        sup_con([a, b], labels, temperature, chunk_elements=chunk),
    ]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    for negatives, both_views in ((None, True), (None, False), (queue, False)):
        metrics = contrastive_accuracy_and_entropy(
            a, b, negatives, temperature, both_views=both_views, chunk_elements=chunk
        )
        assert metrics.top1.shape == metrics.entropy.shape == ()


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


def test_masks_and_patches() -> None:
    random = SampleRandom(0, "mask", 0, torch.arange(4))
    kept, _ = split_patches(random, 64, 16)
    masks = [
        hidden_patches(kept, 64),
        coarse_masked(random, (8, 8), (2, 2), 0.6),
        block_masked(random, (8, 8), 26),
        block_masked(random, (8, 8), torch.full((4,), 26)),
    ]
    assert all(mask.shape == (4, 64) for mask in masks)
    patches = patchify(torch.rand(4, 3, 32, 32), (4, 4))
    placed = place_patches(gather_patches(patches, kept), kept, torch.zeros(48), 64)
    assert unpatchify(placed, (4, 4), (8, 8)).shape == (4, 3, 32, 32)


def test_codes_and_cross_entropy_of_views() -> None:
    scores = torch.randn(4, 3, 7, requires_grad=True)
    codes = sinkhorn(scores[:, 0], past=torch.randn(9, 7))
    with torch.device("cpu"):
        pairs = pairs_of_views([0], 3)  # made once, in the constructor
    cross_entropy_of_views(scores, codes[:, None], pairs.to("meta")).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
