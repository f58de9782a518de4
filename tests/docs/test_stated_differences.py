"""What page and recipe of `byol_r50` say of the published augmentation is what runs here."""

from __future__ import annotations

import re

import pytest
import torch
from pages import DOCS
from torch import Tensor

from sslkit.nn.color import LUMA, adjust_brightness, adjust_contrast, adjust_saturation
from sslkit.nn.image import gaussian_blur
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes

RECIPE = "byol_r50"
pytestmark = pytest.mark.skipif(
    RECIPE not in shipped_recipes(), reason="the plugin sslkit-byol is not installed"
)


def stated() -> dict[str, str]:
    """First word -> row of `byol_r50` in the page's table of differences."""
    page = (DOCS / "methods" / "byol.md").read_text(encoding="utf-8")
    table = page.partition("### Where the recipes differ from the published runs")[2]
    rows = table.partition(f"| `{RECIPE}` |")[2].partition("\n\n")[0].splitlines()
    rows = [rows[0], *(row.removeprefix("| |") for row in rows[1:])]
    return {re.sub(r"^(the|crops are) ", "", row.strip(" |")).split()[0]: row for row in rows}


def header() -> str:
    text = find_recipe(RECIPE).read_text(encoding="utf-8")
    return " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))


def image() -> Tensor:
    """(1, 3, 32, 32) of one colour, whose channels have other means than its grey value."""
    return torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()


def test_the_page_names_what_differs() -> None:
    assert set(stated()) == {
        "brightness", "contrast", "saturation", "blur", "resized", "convolutions", "teacher",
    }  # fmt: skip
    for word in ("brightness", "contrast", "saturation", "blur", "antialiasing", "teacher"):
        assert word in header(), f"the header of {RECIPE} does not name it"


def test_brightness_multiplies_by_what_the_page_says() -> None:
    strength = getattr(load_recipe(RECIPE).augmentation.config, "brightness")  # noqa: B009
    assert f"1 ± {strength}" in stated()["brightness"]
    darkest = adjust_brightness(image(), torch.tensor([1.0 - strength]))
    torch.testing.assert_close(darkest, 0.6 * image())  # and not image - 0.4
    assert "brightness multiplies, there it adds" in header()


def test_contrast_turns_about_the_grey_mean() -> None:
    flat = adjust_contrast(image(), torch.zeros(1))
    grey = sum(part * value for part, value in zip(LUMA, (0.5, 0.25, 0.125), strict=True))
    torch.testing.assert_close(flat, torch.full_like(flat, grey))  # in every channel
    assert "the grey mean of the image | about the mean of each channel" in stated()["contrast"]
    assert "the grey mean of the image, not of each channel" in header()


def test_saturation_mixes_with_grey() -> None:
    none = adjust_saturation(image(), torch.zeros(1))
    grey = sum(part * value for part, value in zip(LUMA, (0.5, 0.25, 0.125), strict=True))
    torch.testing.assert_close(none, torch.full_like(none, grey))  # HSV without S: its V, 0.5
    assert "mixes with grey (torchvision) | scales the saturation of HSV" in stated()["saturation"]
    assert "saturation mixes with grey, there it scales the S of HSV" in header()


def test_the_blur_reflects_the_border() -> None:
    kernel = getattr(load_recipe(RECIPE).augmentation.config, "blur_kernel")  # noqa: B009
    blurred = gaussian_blur(image(), torch.tensor([2.0]), kernel)
    torch.testing.assert_close(blurred, image())  # zeros outside would darken the border
    assert "reflects the border | meets zeros there" in stated()["blur"]
    assert "the blur reflects the border, there it meets zeros" in header()
