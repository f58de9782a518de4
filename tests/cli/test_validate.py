"""`sslkit validate`, with and without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.api import Backbone, RunFacts, largest_view
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.experiment.networks import build_backbone
from sslkit.host.recipe_files import shipped_recipes
from sslkit.recipe import find_recipe, load_recipe
from sslkit.workflows.train import start
from sslkit.workflows.validate import validate


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_right_without_its_data(name: str) -> None:
    assert validate(name, ["train.device=cpu"], data=False).problems == ()


def test_no_shipped_recipe_measures_a_class_token_that_no_loss_reaches() -> None:
    layouts = {}
    for name in shipped_recipes():
        recipe = load_recipe(find_recipe(name))
        if not recipe.method.cls.trains_class_token:
            shape = largest_view(recipe.augmentation.build().views, 3)
            with torch.device("meta"):
                layouts[name] = build_backbone(recipe.backbone, shape).token_layout
    assert len(layouts) > 8
    assert [name for name, layout in layouts.items() if layout.pools_class_token] == []


def test_what_only_networks_tell_is_warned_of_where_they_are_made(tiny: Path) -> None:
    assert not any("BatchNorm" in line for line in validate(tiny, []).warnings)
    (warning,) = [
        line
        for line in validate(tiny, ["train.micro_batch_size=2"]).warnings
        if "BatchNorm" in line
    ]
    assert warning.startswith("train.micro_batch_size: ")
    assert validate(tiny, ["train.micro_batch_size=2"], data=False).warnings == ()


def test_data_that_are_not_there_are_not_looked_for(tiny: Path) -> None:
    absent = ["data={name: image_folder, train: /nowhere, test: /nowhere/too}"]
    assert "/nowhere" in validate(tiny, absent).problems[0]
    assert validate(tiny, absent, data=False).problems == ()
    dense = "evaluate=[{name: segmentation, data: {name: voc, root: /nowhere, task: segmentation}}]"
    assert validate(tiny, [dense]).problems
    assert validate(tiny, [*absent, dense], data=False).problems == ()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backbone.model=resnet18x", "timm has no model"),
        ("augmentation.num_views=1", "simclr contrasts views"),
        ("backbone={name: timm, model: vit_tiny_patch16_224}", "not a multiple of its patch size"),
        ("backbone.normalize={mean: [1, 1], std: [1, 1]}", ""),
        ("train.batch_size=1", "needs train.batch_size >= 2"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_found(override: str, expected: str, tiny: Path) -> None:
    absent = "data={name: image_folder, train: /nowhere}"
    extra = ["augmentation.size=30"] if "vit" in override else []
    found = validate(tiny, [absent, override, *extra], data=False).problems
    assert any(expected in line for line in found) if expected else found == ()


def test_a_grey_backbone_is_not_blamed_without_data(tiny: Path) -> None:
    grey = "backbone.normalize={mean: [0.5], std: [0.5]}"
    assert "but the images have 3" in validate(tiny, [grey]).problems[0]
    assert validate(tiny, [grey], data=False).problems == ()


@pytest.mark.parametrize("error", [RecipeError("method.head: too wide"), RuntimeError("no values")])
def test_what_a_constructor_refuses_is_found_without_memory(
    error: Exception, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RecipeError, in its place; not what goes wrong for want of values."""
    without_memory = []

    def build(self: SimCLR, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        without_memory.append(all(weight.is_meta for weight in backbone.parameters()))
        raise error

    assert validate(tiny, []).problems == ()
    monkeypatch.setattr(SimCLR, "__init__", build)
    problems = validate(tiny, []).problems
    assert without_memory == [True]
    assert validate(tiny, [], data=False).problems == ()
    if isinstance(error, RecipeError):
        assert [line.rpartition(": method.head: ")[2] for line in problems] == ["too wide"]
        assert problems[0].startswith(f"{tiny}:")
        with pytest.raises(RecipeError) as refused:
            start(str(tiny), [], display=Silent())
        assert refused.value.problems == problems
    else:
        assert problems == ()
