"""Tensors on their way to a GPU: bundles keep every bit, and a side stream changes nothing."""

from __future__ import annotations

import pytest
import torch

from sslkit.api import Batch
from sslkit.data.device_transfer import SideStream, bundle
from sslkit.randomness import SampleRandom


def test_bundle_keeps_names_types_shapes_and_bits() -> None:
    mappings = [
        {
            "box": torch.rand(5, 4),
            "flip": torch.tensor([True, False, True, True, False]),
            "order": torch.randint(0, 4, (5, 4)),
            "empty": torch.empty(0, 3),
        },
        {},
        {"box": torch.rand(5, 4).double(), "pixels": torch.arange(35).to(torch.uint8).view(5, 7)},
    ]
    packed = bundle(mappings)
    found = packed.unpack(packed.buffer.clone())
    assert [list(mapping) for mapping in found] == [list(mapping) for mapping in mappings]
    for mapping, expected in zip(found, mappings, strict=True):
        for name, tensor in expected.items():
            assert mapping[name].dtype == tensor.dtype
            assert torch.equal(mapping[name], tensor)
            assert mapping[name].is_contiguous()


def test_bundle_takes_tensors_that_are_not_contiguous() -> None:
    turned = torch.arange(12).view(3, 4).T
    packed = bundle([{"turned": turned}])
    assert torch.equal(packed.unpack(packed.buffer)[0]["turned"], turned)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_side_stream_gives_what_the_current_stream_would() -> None:
    device = torch.device("cuda")
    side = SideStream(device)

    def make(step: int) -> Batch:
        indices = torch.full((256,), step, device=device)
        views = indices.view(-1, 1, 1, 1).expand(256, 3, 64, 64).float() + 1.0
        return Batch((views,), indices, SampleRandom(0, "method", 0, indices))

    for step in range(20):
        batch = side.run(lambda step=step: make(step))  # type: ignore[misc]
        busy = torch.rand(2048, 2048, device=device)
        for _ in range(10):
            busy = busy @ busy
        assert torch.equal(batch.views[0], torch.full_like(batch.views[0], step + 1.0))
