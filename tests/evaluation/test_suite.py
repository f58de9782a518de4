from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import (
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    OwnDataEvaluator,
    OwnDataInput,
    PixelInput,
)
from sslkit.builtin.evaluators.collapse import Collapse
from sslkit.builtin.evaluators.few_label import FewLabel
from sslkit.builtin.evaluators.knn import KNN
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.features import state_digest
from sslkit.evaluation.results import comparison
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.host.compatibility import misfit
from sslkit.report.final_results import FinalResults
from tests.evaluation.tensor_images import TensorImages

NUM_TRAIN, NUM_TEST = 90, 35


class Pictures:
    """Images of 3 classes that differ in colour, in batches that do not divide them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.train_labels = torch.arange(NUM_TRAIN) % 3
        self.test_labels = torch.arange(NUM_TEST) % 3
        self.train, self.test = (
            0.3
            + 0.4 * torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 6, 6)
            + 0.1 * torch.randn(len(labels), 3, 1, 1, generator=generator)  # tints overlap
            for labels in (self.train_labels, self.test_labels)
        )
        self.images = self.with_changes()

    def with_changes(self, **changes: Any) -> TensorImages:
        """These images, or others that differ in what is named."""
        arguments: dict[str, Any] = {
            "train": self.train,
            "test": self.test,
            "train_labels": self.train_labels,
            "test_labels": self.test_labels,
            "class_names": ["red", "green", "blue"],
        }
        return TensorImages(**{**arguments, **changes})

    @property
    def passes(self) -> dict[str, int]:
        return self.images.passes

    def suite(self, *evaluators: tuple[str, Evaluator], **changes: Any) -> EvaluationSuite:
        images = self.with_changes(**changes) if changes else self.images
        return EvaluationSuite(named_evaluators(evaluators), images)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def knn(k: int = 5, every_epochs: int | None = None) -> KNN:
    return KNN(KNN.Config(k=k, every_epochs=every_epochs))


def few_label() -> FewLabel:
    return FewLabel(FewLabel.Config(labels_per_class=(1, 3), draws=6))


class Recorder(FeatureEvaluator):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(EvaluatorConfig())
        self.given: list[FeatureInput] = []

    def evaluate(self, given: FeatureInput) -> Evaluation:
        self.given.append(given)
        return Evaluation({"random": float(torch.rand(())), "rows": len(given.bank.test)})


def test_schedule_and_names(pictures: Pictures) -> None:
    suite = pictures.suite(
        ("knn", knn(every_epochs=3)), ("knn", knn()), ("knn_2", knn(every_epochs=2)), ("knn", knn())
    )
    assert suite.names == ("knn", "knn_3", "knn_2", "knn_4")
    assert suite.due(0, final=False) == []
    assert suite.due(1, final=False) == []
    assert suite.due(2, final=False) == ["knn_2"]
    assert suite.due(6, final=False) == ["knn", "knn_2"]
    assert suite.due(7, final=True) == list(suite.names)
    assert pictures.suite().run(encoder(), 1, final=True).metrics == {}
    assert pictures.passes == {"train": 0, "test": 0}


def test_one_extraction_serves_all_and_counts_the_last_partial_batch(pictures: Pictures) -> None:
    recorder = Recorder()
    collapse = Collapse(Collapse.Config(num_pairs=20))
    suite = pictures.suite(
        ("knn", knn(1)), ("knn", knn(9)), ("rec", recorder), ("collapse", collapse),
        ("collapse", collapse),
    )  # fmt: skip
    result = suite.run(encoder(), 4, final=True)
    assert pictures.passes == {"train": 1, "test": 1}
    assert result.metrics["eval/rec/rows"] == NUM_TEST
    assert recorder.given[0].bank.train.shape == (NUM_TRAIN, 8)
    assert result.metrics["eval/knn/top1"] > 0.9
    assert {"eval/knn_2/top1", "collapse/std", "collapse/alignment", "collapse_2/std"} <= set(
        result.metrics
    )
    assert set(result.figures) == {"collapse/spectrum", "collapse_2/spectrum"}
    assert result.seconds >= sum(result.timings.values()) * 0.99 > 0


def test_the_encoder_and_the_generators_stay_as_they_were(pictures: Pictures) -> None:
    class TrainsOnTheOriginal(ImageEvaluator):
        def evaluate(self, given: ImageInput) -> Evaluation:
            assert not given.encoder.training
            given.encoder.train()
            given.encoder(pictures.train).sum().backward()  # moves the batch statistics
            given.encoder[0].weight.data.add_(1.0)
            given.encoder.requires_grad_(False)
            return Evaluation({"top1": 1.0})

    model = encoder().train()
    model[1].eval()
    flags, digest = [m.training for m in model.modules()], state_digest(model)
    generator = torch.get_rng_state()
    suite = pictures.suite(("bad", TrainsOnTheOriginal(EvaluatorConfig())), ("knn", knn()))
    with pytest.warns(UserWarning, match="after epoch 2: bad on trained failed"):
        result = suite.run(model, 2, final=True)
    assert "changed the encoder" in result.skipped["bad"]
    assert not any(key.startswith("eval/bad") for key in result.metrics)
    assert result.metrics["eval/knn/top1"] > 0.9
    assert state_digest(model) == digest
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_evaluators_draw_alike_for_every_subject(pictures: Pictures) -> None:
    suite = pictures.suite(("rec", Recorder()))
    torch.manual_seed(123)
    trained = suite.run(encoder(), 1, final=True).metrics
    torch.manual_seed(456)
    baselines = suite.baselines(encoder()).metrics
    values = {
        trained["eval/rec/random"],
        baselines["eval/rec/random_pixels"],
        baselines["eval/rec/random_untrained"],
    }
    assert len(values) == 1


def test_without_labels_collapse_still_runs(pictures: Pictures) -> None:
    suite = pictures.suite(
        ("knn", knn()), ("collapse", Collapse(Collapse.Config())),
        train_labels=None, test_labels=None, class_names=(),
    )  # fmt: skip
    result = suite.run(encoder(), 1, final=True)
    assert result.skipped == {"knn": "no labels"}
    assert result.evaluations["trained"]["knn"].skipped == "no labels"
    assert "collapse/rankme" in result.metrics
    assert suite.baselines(encoder()).skipped == {"knn": "no labels"}


def test_without_a_test_split_collapse_uses_the_training_split(pictures: Pictures) -> None:
    suite = pictures.suite(
        ("knn", knn()), ("collapse", Collapse(Collapse.Config())),
        test=None, test_labels=None,
    )  # fmt: skip
    result = suite.run(encoder(), 1, final=True)
    assert result.skipped == {"knn": "no test split"}
    assert result.metrics["collapse/rankme"] > 1.0
    # Nothing to measure: no image is read.
    without = pictures.with_changes(test=None, test_labels=None)
    suite = EvaluationSuite(named_evaluators([("knn", knn())]), without)
    assert suite.run(encoder(), 1, True).skipped
    assert without.passes == {"train": 0, "test": 0}


def test_images_without_a_label_are_left_out_of_label_evaluators(pictures: Pictures) -> None:
    recorder = Recorder()
    train_labels, test_labels = pictures.train_labels.clone(), pictures.test_labels.clone()
    train_labels[10:], test_labels[::2] = -1, -1
    suite = pictures.suite(("rec", recorder), train_labels=train_labels, test_labels=test_labels)
    suite.run(encoder(), 1, final=True)
    bank = recorder.given[0].bank
    assert bank.train_labels.tolist() == train_labels[:10].tolist()
    assert len(bank.train) == 10
    assert bank.test_labels.tolist() == test_labels[1::2].tolist()
    none = pictures.suite(("rec", recorder), train_labels=torch.full((NUM_TRAIN,), -1))
    assert none.run(encoder(), 1, final=True).skipped == {"rec": "no labels"}


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        (0, None, "all labelled training images are of one class, so that every answer is right"),
        (None, 1, "all labelled test images are of one class, so that every answer is right"),
        (None, "moved", "no test image is of a class that the training images have"),
    ],
)
def test_labels_that_tell_nothing_are_not_measured(
    pictures: Pictures, train: int | None, test: int | str | None, reason: str
) -> None:
    """With one class everything is 100 % right, pixels and the untrained encoder too."""
    train_labels, test_labels = pictures.train_labels.clone(), pictures.test_labels.clone()
    if train is not None:
        train_labels[:] = train
    if test == "moved":
        test_labels += 3
    elif isinstance(test, int):
        test_labels[:] = test
    names = [str(number) for number in range(6)]
    suite = pictures.suite(
        ("knn", knn()), ("few_label", few_label()), ("collapse", Collapse(Collapse.Config())),
        train_labels=train_labels, test_labels=test_labels, class_names=names,
    )  # fmt: skip
    result, baselines = suite.run(encoder(), 1, final=True), suite.baselines(encoder())
    assert result.skipped == baselines.skipped == {"knn": reason, "few_label": reason}
    assert not any(key.startswith("eval/") for key in (*result.metrics, *baselines.metrics))
    assert "collapse/rankme" in result.metrics


def test_test_classes_without_training_images_are_counted_and_said(pictures: Pictures) -> None:
    test_labels = pictures.test_labels.clone()
    test_labels[:5] = 3
    test_labels[5] = 4
    suite = pictures.suite(
        ("knn", knn()), test_labels=test_labels, class_names=[str(number) for number in range(5)]
    )
    trained, baselines = suite.run(encoder(), 1, final=True), suite.baselines(encoder())
    note = "6 of 35 test images are of 2 classes without a training image, and count as wrong"
    assert trained.notes == {"labels": [note]}
    assert trained.to_json()["notes"] == {"labels": [note]}
    assert FinalResults.collect(trained, baselines).notes() == [f"labels: {note}"]
    assert trained.metrics["eval/knn/top1"] <= 29 / 35


@pytest.mark.parametrize("fault", ["raises", "returns nothing", "returns text"])
def test_a_failing_evaluator_does_not_lose_the_others(pictures: Pictures, fault: str) -> None:
    class Faulty(FeatureEvaluator):
        def evaluate(self, given: FeatureInput) -> Any:
            if fault == "raises":
                raise ZeroDivisionError("no dividend\nsecond line")
            return None if fault == "returns nothing" else Evaluation({"top1": "high"})

    suite = pictures.suite(("faulty", Faulty(EvaluatorConfig())), ("knn", knn()))
    for final in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = suite.run(encoder(), 1, final) if final else suite.baselines(encoder())
        assert len(caught) == (1 if final else 2)
        assert set(result.skipped) == {"faulty"}
        assert "in evaluate" in result.errors["faulty"] or fault != "raises"
        assert any("knn" in key for key in result.metrics)
        assert not any("faulty" in key for key in result.metrics)
        json.dumps(result.to_json(), allow_nan=False)
    if fault == "raises":
        assert result.skipped["faulty"] == "ZeroDivisionError: no dividend"


def test_features_that_are_not_finite_are_not_measured(pictures: Pictures) -> None:
    model = encoder()
    model[0].weight.data[0] = torch.nan
    result = pictures.suite(("knn", knn())).run(model, 1, final=True)
    total = NUM_TRAIN + NUM_TEST
    assert result.skipped == {"knn": f"features of {total} of {total} images not finite"}
    assert result.metrics == {}


def test_unreadable_data_is_not_swallowed(pictures: Pictures) -> None:
    class Broken(TensorImages):
        def preprocessed(self, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
            raise OSError("disk gone")
            yield

    images = Broken(pictures.train, pictures.test, pictures.train_labels, pictures.test_labels)
    suite = EvaluationSuite(named_evaluators([("knn", knn())]), images)
    with pytest.raises(OSError, match="disk gone"):
        suite.run(encoder(), 1, final=True)


def test_comparison_table_and_json(pictures: Pictures) -> None:
    collapse = Collapse(Collapse.Config())
    suite = pictures.suite(("knn", knn()), ("few_label", few_label()), ("collapse", collapse))
    untrained = encoder()
    digest = state_digest(untrained)
    trained, baselines = suite.run(encoder(), 1, final=True), suite.baselines(untrained)
    assert state_digest(untrained) == digest, "calibration works on a copy"
    rows = {(row.protocol, row.metric): row for row in comparison(trained, baselines)}
    row = rows["few_label", "top1_3"]
    assert list(row.values) == ["pixels", "untrained", "trained"]
    assert row.values["trained"].draws == 6
    assert row.values["trained"].low < row.values["trained"].value < row.values["trained"].high
    a = trained.evaluations["trained"]["few_label"].draws["top1_3"]
    b = baselines.evaluations["pixels"]["few_label"].draws["top1_3"]
    expected = sum(x - y for x, y in zip(a, b, strict=True)) / 6
    assert row.differences["pixels"].value == pytest.approx(expected)
    assert row.differences["pixels"].low is not None
    assert row.values["trained"].over == "6 draws, 35 images"
    knn_row = rows["knn", "top1"]
    assert knn_row.values["trained"].over == "35 images"
    for name in ("pixels", "untrained"):
        difference = knn_row.differences[name]
        assert difference.low < difference.value < difference.high
    assert list(rows["collapse", "collapse/std"].values) == ["trained"]
    assert baselines.metrics["eval/few_label/top1_3_pixels"] == row.values["pixels"].value
    document = json.dumps([trained.to_json(), baselines.to_json(), row.to_json()], allow_nan=False)
    assert "top1_3" in document


def test_labels_must_fit_the_images(pictures: Pictures) -> None:
    suite = pictures.suite(("knn", knn()), test_labels=pictures.test_labels[:-1])
    with pytest.raises(ValueError, match="34 labels for 35 images"):
        suite.run(encoder(), 1, final=True)


def test_the_training_split_is_not_encoded_where_nothing_needs_it(pictures: Pictures) -> None:
    often, seldom = Collapse(Collapse.Config(every_epochs=1)), knn(every_epochs=2)
    suite = pictures.suite(("collapse", often), ("knn", seldom))
    alone = suite.run(encoder(), 1, final=False).metrics
    assert pictures.passes == {"train": 0, "test": 1}
    beside = suite.run(encoder(), 2, final=False).metrics
    assert pictures.passes == {"train": 1, "test": 2}
    assert alone == {key: value for key, value in beside.items() if key in alone}
    assert "eval/knn/top1" in beside


class OnImages(ImageEvaluator):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(EvaluatorConfig())
        self.given: list[ImageInput] = []

    def evaluate(self, given: ImageInput) -> Evaluation:
        self.given.append(given)
        return Evaluation({"top1": 0.5})


def test_evaluators_on_images_take_no_features(pictures: Pictures) -> None:
    alone = OnImages()
    suite = pictures.suite(("images", alone))
    trained, untrained = suite.run(encoder(), 1, final=True), encoder()
    assert pictures.passes == {"train": 0, "test": 0}
    baselines = suite.baselines(untrained)
    assert pictures.passes == {"train": 1, "test": 0}, "batch statistics of the untrained encoder"
    assert [given.subject for given in alone.given] == ["trained", "untrained"]
    assert all(given.images is pictures.images for given in alone.given)
    assert alone.given[1].encoder is untrained
    assert trained.metrics == {"eval/images/top1": 0.5}
    assert baselines.metrics == {"eval/images/top1_untrained": 0.5}
    assert set(trained.timings) == {"images/trained"}


def test_pixels_of_its_own_data_are_a_baseline_without_features(pictures: Pictures) -> None:
    class OnDataOfItsOwn(OwnDataEvaluator):
        baselines = ("pixels", "untrained")

        def evaluate(self, given: OwnDataInput) -> Evaluation:
            return Evaluation({"top1": float(given.subject == "untrained")})

        def evaluate_pixels(self, given: PixelInput) -> Evaluation:
            return Evaluation({"top1": 0.5})

    suite = pictures.suite(("own", OnDataOfItsOwn(EvaluatorConfig())), train_labels=None)
    found = suite.baselines(encoder()).metrics
    assert found == {"eval/own/top1_pixels": 0.5, "eval/own/top1_untrained": 1.0}
    assert suite.run(encoder(), 1, final=True).metrics == {"eval/own/top1": 0.0}


def test_pixels_have_augmented_views_too(pictures: Pictures) -> None:
    class Agreement(FeatureEvaluator):
        def evaluate(self, given: FeatureInput) -> Evaluation:
            first, second = given.views.pairs(7)
            assert first.shape == second.shape == (7, given.bank.train.shape[1])
            return Evaluation({"of_rows": float((first - given.bank.train[:7]).abs().max())})

    suite = pictures.suite(("agreement", Agreement(EvaluatorConfig())))
    found = {**suite.run(encoder(), 1, True).metrics, **suite.baselines(encoder()).metrics}
    assert len(found) == 3
    assert max(found.values()) < 1e-5, "centred like the bank"


class Several(Evaluator):
    """A part on features and one on images."""

    def __init__(self, *parts: Evaluator) -> None:
        super().__init__(EvaluatorConfig())
        self._parts = parts

    def parts(self) -> Sequence[Evaluator]:
        return self._parts


def test_parts_are_reported_as_one_and_each_has_its_own_baselines(pictures: Pictures) -> None:
    suite = pictures.suite(("both", Several(knn(), OnImages())))
    trained = suite.run(encoder(), 1, final=True)
    accuracy, constant = trained.metrics["eval/both/mean_per_class"], trained.metrics
    assert accuracy > 0.9
    assert constant["eval/both/top1"] == 0.5, "the last part of a name counts"
    evaluations = suite.baselines(encoder()).evaluations
    assert set(evaluations["pixels"]["both"].metrics) == {"top1", "mean_per_class"}
    assert evaluations["pixels"]["both"].metrics["top1"] > 0.5
    assert evaluations["untrained"]["both"].metrics["top1"] == 0.5


@pytest.mark.parametrize("wanted", [(), ("untrained",), ("pixels",), None])
def test_a_recipe_leaves_out_baselines(
    pictures: Pictures, wanted: tuple[Literal["pixels", "untrained"], ...] | None
) -> None:
    suite = pictures.suite(("knn", KNN(KNN.Config(k=5, baselines=wanted))))
    found = suite.baselines(encoder())
    assert set(found.evaluations) == set(("pixels", "untrained") if wanted is None else wanted)
    plain = pictures.suite(("knn", knn())).baselines(encoder())
    for subject, evaluations in found.evaluations.items():
        assert evaluations["knn"].metrics == plain.evaluations[subject]["knn"].metrics
    assert suite.images_encoded("untrained", 1, final=True) == (
        0 if wanted is not None and "untrained" not in wanted else NUM_TRAIN + NUM_TEST
    )


def test_a_part_that_is_skipped_takes_nothing_from_the_others(pictures: Pictures) -> None:
    class Skips(FeatureEvaluator):
        def evaluate(self, given: FeatureInput) -> Evaluation:
            return Evaluation(skipped="too few", notes=["2 are too few"])

    skips = Skips(EvaluatorConfig())
    found = pictures.suite(("both", Several(skips, OnImages()))).run(encoder(), 1, final=True)
    assert found.metrics == {"eval/both/top1": 0.5}
    assert found.notes == {"both": ["2 are too few"]}
    assert not found.skipped
    found = pictures.suite(("both", Several(skips, skips))).run(encoder(), 1, final=True)
    assert found.skipped == {"both": "2 are too few"}


@pytest.mark.parametrize("flag", ["uses_features", "own_data", "uses_train", "pixel_baseline"])
def test_the_flags_of_interface_1_are_refused_with_what_to_write(flag: str) -> None:
    value = flag == "own_data"  # the other value of each says what holds anyway
    body = {"evaluate": lambda self, given: Evaluation(), flag: value}
    old = type("Old", (FeatureEvaluator,), body)
    assert (misfit(old, Evaluator, None) or "").startswith(f"defines {flag}, which ended with")
    assert misfit(Recorder, Evaluator, None) is None
    kept = type("Old", (FeatureEvaluator,), {**body, flag: not value})
    assert misfit(kept, Evaluator, None) is None


def test_baselines_of_interface_1_are_the_subjects_that_they_meant() -> None:
    with pytest.warns(DeprecationWarning, match=r"write baselines = \(\)$") as said:

        class NoneOfThem(FeatureEvaluator):
            baselines = False  # type: ignore[assignment]

    assert (NoneOfThem.baselines, said[0].filename) == ((), __file__)
    with pytest.warns(DeprecationWarning, match=r"baselines = \(.pixels., .untrained.\)$"):
        all_of_them = type("All", (FeatureEvaluator,), {"baselines": True})
    assert all_of_them.baselines == ("pixels", "untrained")


def test_layers_of_the_projection_head_are_measured_and_left_as_they_were(
    pictures: Pictures,
) -> None:
    class AtLayers(FeatureEvaluator):
        def evaluate(self, given: FeatureInput) -> Evaluation:
            return Evaluation(
                {f"width_{k}": given.projected(k).bank.train.shape[1] for k in range(3)}
            )

    layers = [nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU()), nn.Linear(5, 2)]
    head = nn.Sequential(*layers).train()
    before = state_digest(head)
    suite = pictures.suite(("at", AtLayers(EvaluatorConfig())))
    suite_metrics = suite.run(encoder(), 1, True, layers).metrics
    assert suite_metrics == {"eval/at/width_0": 8, "eval/at/width_1": 5, "eval/at/width_2": 2}
    with pytest.warns(UserWarning, match="the projection head has 0 layers"):
        assert suite.run(encoder(), 1, final=True).skipped.keys() == {"at"}
    with pytest.warns(UserWarning, match="at on pixels failed"):
        calibrated = suite.baselines(encoder(), layers).metrics
    assert calibrated["eval/at/width_1_untrained"] == 5
    assert head.training
    assert state_digest(head) == before
