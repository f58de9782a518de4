"""The evaluators that decision 0062 shows are what an author writes; here they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslkit
from sslkit import api
from sslkit.api import (
    DataSource,
    DataSourceConfig,
    Evaluation,
    EvaluationImages,
    Evaluator,
    EvaluatorConfig,
    FeatureBank,
    FeatureInput,
    OwnDataEvaluator,
    OwnDataInput,
    PixelInput,
)
from sslkit.builtin.crop_flip import CropFlip
from sslkit.data.evaluation_images import StoredImages
from sslkit.engine.display import Silent
from sslkit.errors import PluginError
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.experiment.stores import open_stores
from sslkit.nn.classification import Vote, knn_correct
from sslkit.nn.compute import Compute
from sslkit.nn.functional import normalize
from sslkit.recipe import load_recipe
from sslkit.workflows.train import start
from tests.evaluation.dense import slot
from tests.evaluation.image_subjects import Arrays, Network, coloured, study

DECISION = Path(__file__).parents[2] / "docs/decisions/0062-three-kinds-of-evaluators.md"


@pytest.fixture(scope="module")
def shown() -> dict[str, type[Evaluator]]:
    """Name -> the class that the decision shows."""
    names: dict[str, Any] = {
        **{name: getattr(api, name) for name in api.__all__},
        "F": F, "Path": Path, "Tensor": Tensor, "Vote": Vote, "knn_correct": knn_correct,
        "normalize": normalize, "np": np, "sslkit": sslkit, "torch": torch,
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", DECISION.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        assert len(block.splitlines()) <= 25, "an author's code is short"
        exec(compile(block, str(DECISION), "exec", dont_inherit=True), names)  # noqa: S102
    return {name: names[name] for name in ("Centroid", "Ensemble", "Mirror")}


def suite(evaluator: Evaluator, images: EvaluationImages) -> EvaluationSuite:
    return EvaluationSuite(named_evaluators([("shown", evaluator)]), images)


def test_on_features(shown: dict[str, type[Evaluator]]) -> None:
    cls = shown["Centroid"]
    given = suite(cls(cls.Config()), study().suite()._images)
    metrics = {
        **given.run(Network(), 1, final=True).metrics,
        **given.baselines(Network()).metrics,
    }
    assert set(metrics) == {f"eval/shown/top1{end}" for end in ("", "_untrained", "_pixels")}
    assert min(metrics.values()) > 0.6, "chance is 1/3"
    assert metrics["eval/shown/top1_pixels"] > 0.95, "colour is the class"


def test_a_class_without_training_images_is_no_answer(shown: dict[str, type[Evaluator]]) -> None:
    """The mean of no rows is not a number, which `argmax` would take for the highest."""
    train, test = torch.eye(3)[[0, 0, 2]], torch.eye(3)[[0, 2, 1]]
    bank = FeatureBank(train, test, torch.tensor([0, 0, 2]), torch.tensor([0, 2, 1]), "abc")
    cls: Any = shown["Centroid"]
    for evaluator in (cls(cls.Config()), page_centroid()):
        found = evaluator.evaluate(FeatureInput("trained", bank, 0))
        assert found.metrics["top1"] == pytest.approx(2 / 3)


def page_centroid() -> Any:
    """The same evaluator as the how-to has it."""
    page = (DECISION.parents[1] / "howto" / "components.md").read_text(encoding="utf-8")
    [block] = [
        found
        for found in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "class Centroid" in found
    ]
    names: dict[str, Any] = {}
    exec(compile(block, "components.md", "exec"), names)  # noqa: S102
    cls = names["Centroid"]
    return cls(cls.Config())


@pytest.mark.slow  # 5 seconds
def test_an_ensemble_of_two_runs(shown: dict[str, type[Evaluator]], tiny: Path) -> None:
    first, second = (
        start(
            str(tiny), [f"seed={seed}", "evaluate=[]", "train.online_probe=null"], display=Silent()
        )
        for seed in (0, 1)
    )
    encoder, cls = sslkit.load_encoder(first.run_dir), shown["Ensemble"]
    stores = open_stores(load_recipe(first.run_dir / "recipe.resolved.yaml"), Silent())
    images = StoredImages(
        stores, encoder.preprocess,
        Compute(torch.device("cpu"), "fp32", channels_last=False),
        seed=0, augmentation=CropFlip(CropFlip.Config(size=encoder.preprocess.size)),
    )  # fmt: skip
    scores = {}
    for name, other in (("twice", first), ("both", second)):
        found = suite(cls(cls.Config(other=other.run_dir)), images).run(encoder, 1, final=True)
        assert not found.errors
        scores[name] = found.metrics["eval/shown/top1"]
    labels = images.labels("train"), images.labels("test")
    alone = knn_correct(
        normalize(images.features(encoder, "train")), labels[0],
        normalize(images.features(encoder, "test")), labels[1],
        Vote(k=20, temperature=0.1, num_classes=images.num_classes),
    )  # fmt: skip
    assert scores["twice"] == pytest.approx(float(alone.mean()), abs=1e-6), "one run beside itself"
    assert scores["both"] != scores["twice"]


def test_on_data_of_its_own(shown: dict[str, type[Evaluator]]) -> None:
    class Coloured(DataSource):
        Config = DataSourceConfig

        def open(self, split: str) -> Arrays:
            return Arrays(*coloured(30, 0, 0.25))

    cls = shown["Mirror"]
    evaluator = cls(cls.Config.model_construct(data=slot(Coloured), every_epochs=None))
    given = suite(evaluator, study().suite()._images)
    trained, baselines = given.run(Network(), 1, final=True), given.baselines(Network())
    assert 0.5 < trained.metrics["eval/shown/similarity"] < 1.0
    assert set(baselines.metrics) == {"eval/shown/similarity_untrained"}


def test_raw_samples_that_nobody_measures_are_said_with_what_to_write() -> None:
    class Forgetful(OwnDataEvaluator):
        baselines = ("pixels",)

        def evaluate(self, given: OwnDataInput) -> Evaluation:
            return Evaluation()

    with pytest.raises(PluginError, match=r"Forgetful names raw samples .* define evaluate_pixels"):
        Forgetful(EvaluatorConfig()).evaluate_pixels(PixelInput(0, torch.device("cpu")))
