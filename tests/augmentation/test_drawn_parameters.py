"""What is drawn against what torchvision's transforms draw, 10,000 samples each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp
from torch import Tensor, nn
from torchvision import transforms

from sslkit.api import Params
from sslkit.builtin.augmentations import SimCLRAugmentation, SimCLRConfig
from sslkit.randomness import SampleRandom

COUNT = 10_000
SIZES = (375, 500)
CONFIG = SimCLRConfig(
    size=224, num_views=1, rotation_degrees=25.0, rotation_probability=0.6,
    solarize_probability=0.3, brightness=0.4, contrast=0.6, saturation=0.7, hue=0.1,
)  # fmt: skip

P_VALUE = 1e-3
"""Both sides draw with fixed seeds, so a test passes always or never."""


@pytest.fixture(scope="module")
def ours() -> Params:
    random = SampleRandom(0, "augment", 0, torch.arange(COUNT))
    sizes = torch.tensor([SIZES]).expand(COUNT, 2)
    return SimCLRAugmentation(CONFIG).draw(random, sizes)[0]


@pytest.fixture(scope="module")
def jitters() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Torchvision's: factors (N, 4) and orders (N, 4)."""
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(
        CONFIG.brightness, CONFIG.contrast, CONFIG.saturation, CONFIG.hue
    )
    drawn = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(COUNT)
    ]
    factors = np.array([factors for _, *factors in drawn])
    return factors, torch.stack([order for order, *_ in drawn]).numpy()


def assert_same_distribution(mine: Tensor, theirs: NDArray[np.float64]) -> None:
    values = mine.double().numpy()
    assert ks_2samp(values, theirs).pvalue > P_VALUE
    spread = theirs.std()
    assert abs(values.mean() - theirs.mean()) < 4 * spread * (2 / COUNT) ** 0.5
    levels = (0.01, 0.1, 0.5, 0.9, 0.99)
    apart = np.quantile(values, levels) - np.quantile(theirs, levels)
    assert np.abs(apart).max() < 0.08 * spread


def assert_same_rate(mine: Tensor, theirs: list[bool]) -> None:
    first, second = mine.sum().item(), sum(theirs)
    spread = (2 * COUNT * 0.25) ** 0.5
    assert abs(first - second) < 4 * spread
    assert 0 < second < COUNT


@pytest.mark.parametrize("position", range(4))
def test_jitter_factors(ours, jitters, position):
    name = ("brightness", "contrast", "saturation", "hue")[position]
    assert_same_distribution(ours[name], jitters[0][:, position])


def test_jitter_orders(ours, jitters):
    """Each of the 24 orders as often."""
    digits = np.array([64, 16, 4, 1])
    codes = [(orders * digits).sum(axis=1) for orders in (ours["jitter_order"].numpy(), jitters[1])]
    kinds = np.unique(np.concatenate(codes))
    counts = np.array([[(side == kind).sum() for kind in kinds] for side in codes])
    assert len(kinds) == 24
    assert chi2_contingency(counts).pvalue > P_VALUE


def test_which_operation_is_at_which_place(ours, jitters):
    for slot in range(4):
        counts = [np.bincount(orders[:, slot]) for orders in (ours["jitter_order"], jitters[1])]
        assert chi2_contingency(np.array(counts)).pvalue > P_VALUE


def test_crops(ours):
    torch.manual_seed(0)
    image = torch.empty(3, 1, 1).expand(3, *SIZES)
    scale, ratio = list(CONFIG.crop_scale), list(CONFIG.crop_ratio)
    drawn = [transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(COUNT)]
    theirs = np.array(drawn, dtype=np.float64).T
    mine = ours["box"].double().unbind(1)
    for ours_edge, theirs_edge in zip(mine, theirs, strict=True):
        assert_same_distribution(ours_edge, theirs_edge)
    assert_same_distribution(mine[2] * mine[3], theirs[2] * theirs[3])
    assert_same_distribution((mine[3] / mine[2]).log(), np.log(theirs[3] / theirs[2]))


def test_blur_and_rotation(ours):
    torch.manual_seed(0)
    draws: dict[str, Callable[[], float]] = {
        "sigma": lambda: transforms.GaussianBlur.get_params(*CONFIG.blur_sigma),
        "degrees": lambda: transforms.RandomRotation.get_params([-25.0, 25.0]),
    }
    for name, draw in draws.items():
        assert_same_distribution(ours[name], np.array([draw() for _ in range(COUNT)]))


class _Negative(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return -image


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("flip", transforms.RandomHorizontalFlip(CONFIG.flip)),
        ("grayscale", transforms.RandomGrayscale(CONFIG.grayscale_probability)),
        ("solarize", transforms.RandomSolarize(0.5, CONFIG.solarize_probability)),
        ("jitter", transforms.RandomApply([_Negative()], CONFIG.jitter_probability)),
        ("blur", transforms.RandomApply([_Negative()], CONFIG.blur_probability)),
        ("rotate", transforms.RandomApply([_Negative()], CONFIG.rotation_probability)),
    ],
)
def test_rates(ours, name, transform):
    """How often a transform of torchvision changes an image that each of them would change."""
    torch.manual_seed(0)
    image = torch.tensor([[[0.9, 0.1]], [[0.2, 0.7]], [[0.3, 0.6]]])
    changed = [not torch.equal(transform(image), image) for _ in range(COUNT)]
    assert_same_rate(ours[name], changed)
