"""The core asks a backbone where it starts and what to call it, and reads none of its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.api import (
    Backbone,
    ComponentConfig,
    NoTimmModelError,
    Slot,
    StartingWeights,
    start_transformer,
)
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.errors import CheckpointError, RecipeError
from sslkit.experiment.description import run_tags
from sslkit.experiment.networks import starting_source, without_starting_weights
from sslkit.recipe import Recipe, backbone_name, load_recipe
from sslkit.workflows.evaluate.published import published_block, say_published, started_from
from sslkit.workflows.evaluate.weight_files import _name


class Named(Backbone):
    """Fields with names of its own; `model` and `pretrained` mean something else."""

    class Config(ComponentConfig):
        model: int = 3
        pretrained: str = "no"
        begin: Path | None = None
        hub: bool = False

    config: Config

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))

    @classmethod
    def starting_weights(cls, config: Any) -> StartingWeights | None:
        if config.begin is not None:
            return StartingWeights(str(config.begin), config.begin)
        return StartingWeights("hub's", image_size=224) if config.hub else None

    @classmethod
    def without_weights(cls, config: Any) -> Any:
        return config.model_copy(update={"begin": None, "hub": False})

    @classmethod
    def label(cls, config: Any) -> str:
        return f"named-{config.model}"


class Plain(Backbone):
    class Config(ComponentConfig):
        model: str = "a field that is no name"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


class Old(Plain):
    """Written for interface 1."""

    @classmethod
    def architecture(cls, config: Any) -> Any:
        return config.model_copy(update={"model": "bare"})


def recipe_with(tiny: Path, cls: type[Backbone], **fields: Any) -> Recipe:
    slot = Slot(cls, "mine", cls.Config(**fields), "sslkit-mine", "1.0")
    return load_recipe(tiny).model_copy(update={"backbone": slot})


def test_labels(tiny: Path) -> None:
    assert backbone_name(recipe_with(tiny, Named)) == "named-3"
    assert backbone_name(recipe_with(tiny, Plain)) == "mine"
    assert backbone_name(load_recipe(tiny)) == "test_resnet"
    assert run_tags(recipe_with(tiny, Named))["sslkit.backbone"] == "named-3"


def test_where_it_starts(tiny: Path, tmp_path: Path) -> None:
    assert starting_source(recipe_with(tiny, Plain)) is None
    assert starting_source(recipe_with(tiny, Named)) is None
    assert starting_source(recipe_with(tiny, Named, hub=True)) == "hub's"
    bare = without_starting_weights(recipe_with(tiny, Named, begin=tmp_path / "w.pt", hub=True))
    assert (bare.backbone.config.begin, bare.backbone.config.hub) == (None, False)
    old = without_starting_weights(recipe_with(tiny, Old))
    assert old.backbone.config.model == "bare"


def test_what_measured_weights_are_called(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "vicreg.pth"
    assert _name(recipe_with(tiny, Named, begin=file), file) == "vicreg"
    assert _name(recipe_with(tiny, Named, hub=True), None) == "named-3"
    with pytest.raises(RecipeError, match="would replace"):
        _name(recipe_with(tiny, Named), file)
    with pytest.raises(RecipeError, match="'mine' starts from no weights"):
        _name(recipe_with(tiny, Plain), None)


def test_a_method_starts_no_network_anew_that_has_weights() -> None:
    """They would be lost without a word."""
    with pytest.raises(RecipeError, match=r"method\.vit_init: it would replace the weights"):
        start_transformer(Named(Named.Config(hub=True)), "vit_init")
    with pytest.raises(RecipeError, match=r"method\.vit_init: the network has no patch embedding"):
        start_transformer(Named(Named.Config()), "vit_init")


def test_timm_says_where_it_starts(tmp_path: Path) -> None:
    def start(**fields: Any) -> StartingWeights | None:
        return TimmBackbone.starting_weights(TimmBackbone.Config(model="resnet18", **fields))

    assert start() is None
    assert start(pretrained=True) == StartingWeights("resnet18", image_size=224)
    file = tmp_path / "w.pth"
    assert start(weights=file) == StartingWeights(str(file), file)


def test_a_model_is_found_by_its_name() -> None:
    block = published_block("vit_base_patch16_224")
    assert (block["name"], block["model"], block["pretrained"]) == (
        "timm", "vit_base_patch16_224", True,
    )  # fmt: skip
    assert block["normalize"] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert block["interpolation"] == "bicubic"
    assert "--backbone resnet18" in say_published(Path("resnet18"))
    assert say_published(Path("no_such_model")) == ""
    with pytest.raises(CheckpointError, match="no installed backbone has a model of this name"):
        published_block("no_such_model")


def test_a_file_takes_the_place_of_published_weights() -> None:
    block = {"name": "timm", "model": "resnet18", "pretrained": True, "stem": "small"}
    assert started_from(block, Path("w.pth")) == {
        "name": "timm", "model": "resnet18", "stem": "small", "weights": "w.pth",
    }  # fmt: skip
    assert started_from({"name": "no_such"}, Path("w.pth")) is None


def test_a_backbone_is_asked_for_timms_model() -> None:
    config = TimmBackbone.Config(
        model="test_vit", patch_size=4, model_args={"depth": 2}, normalize="none"
    )
    found = TimmBackbone(config, channels=1, image_size=16).timm_model()
    assert found.name == "test_vit"
    assert found.arguments == {"img_size": 16, "patch_size": 4, "in_chans": 1, "depth": 2}
    small = TimmBackbone.Config(model="test_resnet", stem="small")
    with pytest.raises(NoTimmModelError, match="timm has no test_resnet with stem: small"):
        TimmBackbone(small, channels=3, image_size=16).timm_model()
    with pytest.raises(NoTimmModelError, match="Named is no model of timm"):
        Named(Named.Config()).timm_model()
