"""`sslkit validate`, with and without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sslkit.api import Backbone, RunFacts
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.host.recipe_files import shipped_recipes
from sslkit.workflows.train import start
from sslkit.workflows.validate import validate


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_right_without_its_data(name: str) -> None:
    assert validate(name, ["train.device=cpu"], data=False).problems == ()


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
