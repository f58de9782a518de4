"""Sketches of methods, on data of several kinds, meet every law. Packages under `plugins/` try the
laws on their own methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from broken_methods import Sound
from outcomes import broken_laws
from PIL import Image
from sound_masked import MASKED, Flipped
from sound_methods import DINO, JOINT, MemoryBank, Scheduled, SimSiam, SwAV
from torch import Tensor

from sslkit.api import Method, Params
from sslkit.builtin.crop_flip import CropFlip
from sslkit.recipe import load_recipe
from sslkit.testing import checks
from sslkit.testing.kit import checks_of
from sslkit.testing.subject import Subject, slot_of

RECIPES = Path(__file__).with_name("recipes")
ON = [
    *((method, None) for method in (Sound, *JOINT)),
    (DINO, "multi_crop"),
    *((method, "one_view_vit") for method in MASKED),
    (SimSiam, "grey"),
    (SwAV, "series"),
]
RGB = ("backbone.normalize=imagenet",)
IN_EVERY_TEST = (Scheduled,)
"""What `make test` runs, of a family each."""
ALSO_SLOW_LAWS = (DINO, SwAV, Scheduled)
"""What is tried on several ranks and in another interpreter too."""
METHODS = [
    pytest.param(
        *pair,
        id=f"{pair[0].__name__}-{pair[1]}",
        marks=[] if pair[0] in IN_EVERY_TEST else [pytest.mark.slow],
    )
    for pair in ON
]


def recipe_path(name: str | None) -> Path | None:
    return RECIPES / f"{name}.yaml" if name else None


@pytest.mark.slow  # 14 seconds
@pytest.mark.parametrize(("method", "recipe"), METHODS)
def test_a_sound_method_meets_the_fast_laws(method: type[Method], recipe: str | None) -> None:
    assert broken_laws(method, recipe=recipe_path(recipe)) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ALSO_SLOW_LAWS)
def test_a_sound_method_meets_all_laws(method: type[Method]) -> None:
    recipe = {m: r for m, r in ON if r in (None, "multi_crop", "one_view_vit")}[method]
    assert broken_laws(method, recipe=recipe_path(recipe), fast=False) == []


@pytest.mark.slow
def test_a_method_meets_the_laws_on_images_that_nobody_labelled(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(48):
        image = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "train" / f"{number}.png")
    data = f"data={{name: image_folder, train: {tmp_path / 'train'}, labels: none}}"
    subject = Subject(slot_of(MemoryBank, {}), load_recipe(RECIPES / "grey.yaml", [data, *RGB]))
    outcomes = {str(check): check.outcome() for check in checks_of(subject, fast=True)}
    assert [name for name, outcome in outcomes.items() if outcome.status == "failed"] == []
    without = outcomes["labels-are-asked-for"]
    assert without.status == "untried"
    assert without.text == "the data of the recipe have no labels; name data that have some"


class SaysFlip(CropFlip):
    """A crop and flip whose flip is to be guessed."""

    def targets(self, params: list[Params]) -> dict[str, Tensor]:
        return {"flip": params[0]["flip"]}


@pytest.mark.slow
def test_a_method_that_learns_what_its_augmentation_did_meets_the_laws() -> None:
    views = {"augmentation": slot_of(SaysFlip, {"size": 16})}
    recipe = load_recipe(RECIPES / "one_view_vit.yaml").model_copy(update=views)
    subject = Subject(slot_of(Flipped, {}), recipe)
    outcomes = {str(check): check.outcome() for check in checks_of(subject, fast=True)}
    assert [name for name, outcome in outcomes.items() if outcome.status == "failed"] == []


def test_a_class_is_tried_in_a_recipe_that_names_another_method() -> None:
    """The method of the recipe was tried in its place."""
    (check,) = (c for c in checks(NoLoss, recipe=RECIPES / "grey.yaml") if str(c) == "trains")
    assert "NoLoss has none" in check.outcome().text


class NoLoss(Sound):
    """Never trains."""

    def objective(self, *arguments: object) -> object:  # type: ignore[override]
        raise RuntimeError("NoLoss has none")
