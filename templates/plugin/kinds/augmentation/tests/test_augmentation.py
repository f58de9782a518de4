"""Views follow from the key of the sample; their values can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from sslkit.randomness import SampleRandom
from torch import Tensor

from sslkit_newname.augmentation import NewName


def views(made: NewName, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """The views of images (B, C, H, W) uint8 that stand at `indices` of a data set."""
    random = SampleRandom(seed=0, stream="test", epoch=0, indices=torch.tensor(indices))
    sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
    params = made.draw(random, sizes)
    return [made.make(view, images, each) for view, each in enumerate(params)]


def augmentation(**fields: object) -> NewName:
    return NewName(NewName.Config.model_validate({"size": 8, **fields}))


IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)


def test_shape_range_and_number_of_views() -> None:
    found = views(augmentation(num_views=3), IMAGES, range(6))
    assert [tuple(view.shape) for view in found] == [(6, 3, 8, 8)] * 3
    assert all(view.min() >= 0.0 and view.max() <= 1.0 for view in found)


def test_a_sample_has_the_same_views_in_any_batch() -> None:
    together = views(augmentation(), IMAGES, range(6))
    alone = views(augmentation(), IMAGES[4:5], [4])
    for batch, one in zip(together, alone, strict=True):
        torch.testing.assert_close(batch[4:5], one)
    assert not torch.equal(together[0], together[1])


def test_a_view_is_mirrored_left_to_right_where_it_should_be() -> None:
    fields = {"size": 12, "gamma": 1.0, "covered": 0.0}
    [kept] = views(augmentation(num_views=1, flip=0.0, **fields), IMAGES, range(6))
    [mirrored] = views(augmentation(num_views=1, flip=1.0, **fields), IMAGES, range(6))
    torch.testing.assert_close(mirrored, kept.flip(3))


def test_gamma_is_a_power() -> None:
    images = torch.full((1, 1, 8, 8), 0.25)
    params = {"gamma": torch.tensor([2.0]), "corner": torch.zeros(1, 2)}
    changed = augmentation(covered=0.0).photometric(0, images, params)
    assert changed.unique().item() == pytest.approx(0.0625)


def test_the_covered_square_has_its_size_and_its_place() -> None:
    images = torch.zeros(1, 1, 8, 8)
    params = {"gamma": torch.ones(1), "corner": torch.tensor([[0.5, 0.0]])}
    covered = augmentation(covered=0.25).photometric(0, images, params)[0, 0]
    rows, columns = covered.nonzero().T
    assert sorted(set(rows.tolist())) == [4, 5]
    assert sorted(set(columns.tolist())) == [0, 1]
    assert covered.sum().item() == pytest.approx(4 * 0.5)
