"""Data, augmentation and backbone agree on what a sample is, or are refused in one line; a series
trains and is measured without posing as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Component,
    ComponentConfig,
    DataSource,
    DataSourceConfig,
    Slot,
    SplitReader,
)
from sslkit.data.splits import Splits, open_splits
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.experiment.build import build
from sslkit.experiment.check import find_facts
from sslkit.experiment.encoder import load_encoder, save_encoder
from sslkit.experiment.measuring import evaluate_calibrated
from sslkit.experiment.resolve import resolve
from sslkit.parallel.world import OneProcess
from sslkit.recipe import Recipe, check_recipe, load_recipe
from sslkit.runs.encoder_file import read_description
from sslkit.runs.folder import RunFolder
from sslkit.workflows.plan_steps import take_steps
from tests.data.series import LENGTH, Waves, Windows


class WaveSource(DataSource):
    Config = DataSourceConfig

    def open(self, split: str) -> Waves:
        return Waves(count=48) if split == "train" else Waves(count=20, seed=4)


class Windowed(Windows):
    Config = ComponentConfig

    def __init__(self, config: Any) -> None:
        self.config = config
        super().__init__()


class Filters(Backbone):
    """A bank of learnt filters, normalised over the batch, averaged over time."""

    takes_images = False
    num_features = 6
    shapes: list[tuple[int, ...]] = []  # noqa: RUF012

    def __init__(self, config: Any, *, shape: tuple[int, ...]) -> None:
        super().__init__(config)
        self.shapes.append(shape)
        self.filters = nn.Sequential(nn.Conv1d(shape[0], 6, 5), nn.BatchNorm1d(6), nn.ReLU())

    def forward(self, samples: Tensor) -> Tensor:
        features: Tensor = self.filters(samples).mean(2)
        return features


def slot(cls: type[Component]) -> Slot[Any]:
    return Slot(cls, cls.__name__.lower(), cls.Config(), "tests", "0")


SERIES = {"data": WaveSource, "augmentation": Windowed, "backbone": Filters}


def recipe_of(tiny: Path, *names: str) -> Recipe:
    """The tiny recipe of images with these of its components for series."""
    recipe = load_recipe(
        tiny, ["train.batch_size=16", "train.epochs=1", "evaluate=[{name: knn, k: 5}]"]
    )
    return resolve(recipe.model_copy(update={name: slot(SERIES[name]) for name in names}))


def facts_of(recipe: Recipe, splits: Splits[SplitReader] | None = None) -> Any:
    return find_facts(recipe, splits or open_splits(recipe.data), recipe.augmentation.build())


def test_a_series_trains_is_measured_and_its_encoder_is_built_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny, *SERIES)
    facts = facts_of(recipe)
    assert (facts.channels, facts.image_size, str(facts.sample)) == (2, None, "2 x 40 float32")
    assert check_recipe(recipe, facts) == []
    with RunFolder.create(tmp_path, "series") as folder:
        experiment = build(recipe, facts, folder, Silent(), OneProcess())
        assert Filters.shapes[-1] == (2, 16)
        steps = take_steps(experiment.training, 3)
        assert len(steps.seconds) == 3
        scores = evaluate_calibrated(experiment.suite, experiment.method, 1, final=True).metrics
        assert 0.0 <= scores["eval/knn/top1"] <= 1.0
        file = save_encoder(experiment)
        described = read_description(file)
        assert described.input_shape == (2, 16)
        assert str(described.trained_on) == "2 x 40 float32"
        monkeypatch.setattr(
            "sslkit.experiment.encoder.resolve_component", lambda *given: slot(Filters)
        )
        encoder = load_encoder(file)
        samples = torch.from_numpy(Waves(count=3).values)
        with torch.no_grad():
            expected = experiment.method.encoder.eval()(samples)
            assert torch.equal(encoder(samples), expected)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("data",), "augmentation: 'simclr' makes views of images, and the samples of 'wavesource'"
                    f" are 2 x {LENGTH} float32; choose an augmentation for those"),
        (("data", "augmentation"), "backbone: 'timm' takes square images, and would be given views"
                                   " of 16; choose a backbone for those"),
    ],
    ids=["augmentation", "backbone"],
)  # fmt: skip
def test_components_that_disagree_are_refused_in_one_line(
    tiny: Path, names: tuple[str, ...], line: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        facts_of(recipe_of(tiny, *names))
    assert line in str(refused.value).splitlines()


def test_evaluators_of_images_say_that_these_are_none(tiny: Path) -> None:
    recipe = recipe_of(tiny, *SERIES)
    asked = load_recipe(tiny, ["evaluate=[{name: finetune}, {name: segmentation, "
                               "data: {name: scenes, num_train: 4, num_test: 4}}]"])  # fmt: skip
    problems = check_recipe(
        recipe.model_copy(update={"evaluate": asked.evaluate}), facts_of(recipe)
    )
    assert any("fine-tunes on images, and the samples are 2 x 40 float32" in p for p in problems)
    assert any("the encoder takes samples of 2 x 40 float32" in p for p in problems)
