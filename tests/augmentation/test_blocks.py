"""Work in blocks of fixed size."""

from __future__ import annotations

import pytest
import torch

from sslkit.nn.chunked import block_rows, in_blocks


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_the_same_as_all_at_once(count):
    images, table = torch.rand(count, 2, 3), {"factor": torch.rand(count), "name": "kept"}
    seen = []

    def function(nested, scale):
        images, table = nested
        seen.append(len(images))
        assert table["name"] == "kept"
        return [images * table["factor"].view(-1, 1, 1) * scale, images.sum(dim=2)]

    results = in_blocks(function, ([images, table], 2.0), count, 4)
    assert set(seen) == {4}
    assert len(seen) == (count + 3) // 4
    assert torch.equal(results[0], images * table["factor"].view(-1, 1, 1) * 2.0)
    assert torch.equal(results[1], images.sum(dim=2))


def test_no_samples():
    with pytest.raises(ValueError, match="no samples"):
        in_blocks(lambda images: [images], (torch.rand(0, 3),), 0, 4)


def test_rows_depend_on_shapes():
    assert block_rows(3 * 224 * 224) == 1
    assert block_rows(3 * 32 * 32) == 42
