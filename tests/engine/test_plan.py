"""The plan: it refuses what the run would refuse, measures steps, and warns of what is rarely
meant."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Component, RunFacts, ViewSpec
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.losses import InfoNCE, NTXent
from sslkit.builtin.optimizers import LARS, SGD, AdamW
from sslkit.builtin.schedules import Constant, Cosine
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.data import evaluation_images
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.evaluation import subjects
from sslkit.evaluation.suite import EvaluationSuites
from sslkit.nn.numerics import Precision
from sslkit.parallel.imagined import ImaginedRank
from sslkit.parallel.shared_work import SharedWork
from sslkit.recipe import load_recipe, shipped_recipes, warnings
from sslkit.recipe.precision_cost import cost_on_cpu
from sslkit.recipe.warnings import Advice, find_warnings, network_warnings, plan_facts, statements
from sslkit.report.plan import duration, text_plot
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start
from tests.displays import Heard


def facts(
    *, images: int = 50_000, classes: int | None = 10, batch: int = 256, size: int = 32,
    steps: int = 1950,
) -> RunFacts:  # fmt: skip
    views = (ViewSpec(size), ViewSpec(size))
    return RunFacts(images, 3, (size, size), classes, batch, images // batch, steps, views)


def paths(found: Iterable[Advice]) -> list[str]:
    return [advice.path for advice in found]


def test_dry_run_checks_the_tracker(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI"):
        make_plan(str(tiny), ["tracking={name: mlflow}"], Silent())


def test_the_plan_measures_warm_steps_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    plan = make_plan(str(tiny), [], Silent(), measure=True).to_json()
    assert not (tmp_path / "runs").exists()
    time = plan["time"]
    assert time["measured_steps"] == 6  # of 8, across the end of the first epoch
    assert time["training_seconds"] == pytest.approx(18 * time["step_seconds"])
    assert time["images_per_second"] == pytest.approx(16 / time["step_seconds"])
    assert time["evaluations"] == 4  # after two epochs, at the end, and of the untrained encoder
    assert time["total_seconds"] > time["training_seconds"]
    assert plan["facts"] == {"negatives per anchor": 30}
    assert plan["data"]["images_per_class"][0] > 0
    assert plan["data"]["test"] == 48
    assert plan["warnings"] == []
    parameters = plan["parameters"]
    assert parameters["encoder"] + parameters["other"] == parameters["trainable"]
    # Weights and both moments of AdamW, in float32.
    assert plan["disk"]["checkpoint_mb"] > 3 * 4 * parameters["trainable"] / 1e6
    assert plan["disk"]["checkpoints_mb"] == pytest.approx(3 * plan["disk"]["checkpoint_mb"])
    assert json.loads(json.dumps(plan)) == plan


def test_a_number_that_begins_at_its_end_is_said(tiny: Path) -> None:
    """A warm-up rises to the factor 1, which is a number's start: from 0, which is its end."""
    decay = "{name: cosine, start: 0.04, end: 0.4, warmup_epochs: 1}"
    recipe = load_recipe(tiny, [f"optimizer.weight_decay={decay}", "train.device=cpu"])
    (found,) = find_warnings(recipe, facts())
    assert found.path == "optimizer.weight_decay"
    assert "begins at 0.4 and not at its start, 0.04" in found.message
    plain = load_recipe(tiny, [f"optimizer.weight_decay={decay[:-19]}}}", "train.device=cpu"])
    assert find_warnings(plain, facts()) == []


BROUGHT = "{name: synthetic, num_train: 60, num_test: 24, size: 16}"


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize(
    "entries",
    [
        "{name: knn, k: 5, every_epochs: 1}",
        "{name: collapse, every_epochs: 1, policy: 'off'}",  # the test split alone, no baselines
        f"{{name: knn, k: 5, data: {BROUGHT}}}, {{name: few_label, labels_per_class: [1]}}",
    ],
)
def test_the_images_of_evaluations_are_those_of_the_run(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    """Counted where they go through an encoder: for features, and for batch statistics before."""
    counts = {"features": 0, "statistics": 0}

    def counted(kind: str, function: Any, only: Any) -> Any:
        def count(network: nn.Module, batches: Iterable[Tensor], *given: Any) -> Any:
            images = list(batches)
            counts[kind] += sum(map(len, images)) if only(given) else 0
            return function(network, images, *given)

        return count

    changes = [f"evaluate=[{entries}]", "train.online_probe=null"]
    monkeypatch.setattr(EvaluationSuites, "seconds_per_image", lambda *_: 1.0)
    time = make_plan(str(tiny), changes, Silent(), measure=True).time
    assert time is not None
    banks = counted("features", subjects.extract, lambda given: given[-1] is not None)
    monkeypatch.setattr(
        subjects, "extract", lambda *given: banks(*given, *[None] * (4 - len(given)))
    )
    statistics = counted("statistics", evaluation_images.calibrate_batch_norm, lambda _: True)
    monkeypatch.setattr(evaluation_images, "calibrate_batch_norm", statistics)
    start(tiny, changes, display=Silent())
    again = 96 if BROUGHT in entries else 0  # the untrained encoder is calibrated for each source
    assert time["feature_seconds"] == counts["features"] + counts["statistics"] - again


@pytest.mark.parametrize(
    ("images", "size", "alone"),
    [
        (0, 2, 0),
        (1, 2, 1),
        (512, 2, 512),
        (513, 2, 512),  # the other one has a single image, meanwhile
        (1024, 2, 512),
        (1025, 2, 513),
        (2000, 2, 1024),
        (50_000, 1, 50_000),
        (50_000, 8, 6656),  # 97 batches and 336 images: 13 rounds, whole ones among the last
        (50_000, 64, 1024),
        (50_000, 98, 512),
    ],
)
def test_images_that_ranks_take_one_after_the_other(images: int, size: int, alone: int) -> None:
    """Against the batches themselves, dealt out."""
    batches = [min(512, images - start) for start in range(0, images, 512)]
    rounds = [max(batches[start : start + size]) for start in range(0, len(batches), size)]
    assert sum(rounds) == alone
    assert SharedWork(ImaginedRank(size)).one_after_another(images, 512) == alone


@pytest.mark.slow  # 3 seconds
def test_the_time_of_evaluations_is_that_of_shared_features(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,300 training images and 600 test images on 2 processes: 2 rounds of 512 and 276, then one
    of 512; the same training images for the batch statistics. With one: all of them."""
    data = "data={name: synthetic, num_train: 1300, num_test: 600, size: 16}"
    changes = [data, "train.online_probe=null", "train.max_steps=1", "evaluate=[{name: knn, k: 5}]"]
    monkeypatch.setattr(EvaluationSuites, "seconds_per_image", lambda *_: 1.0)
    for processes, images in ((1, 1300 + 1300 + 600), (2, 788 + 788 + 512)):
        plan = make_plan(str(tiny), changes, Silent(), measure=True, processes=processes)
        assert plan.time is not None
        assert plan.time["evaluations"] == 2  # of the trained and the untrained encoder
        assert plan.time["feature_seconds"] == 2 * images


def test_a_run_shorter_than_the_measurement_is_planned_whole(tiny: Path) -> None:
    plan = make_plan(
        str(tiny), ["train.max_steps=1", "evaluate=[]"], Silent(), measure=True
    ).to_json()
    assert plan["time"]["measured_steps"] == 1
    assert plan["time"]["evaluations"] == 0
    assert plan["time"]["feature_seconds"] == 0.0
    assert len(plan["lr_curve"]) == 1


def test_the_first_step_of_the_plan_is_that_of_the_run(tiny: Path) -> None:
    options = ["train.max_steps=1", "evaluate=[]"]
    result = start(str(tiny), options, display=Silent())
    plan = make_plan(str(tiny), options, Silent()).to_json()
    assert plan["first_loss"] == pytest.approx(result.metrics["train/loss"], rel=1e-6)
    assert plan["time"] is None


# --- Warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart", "simclr_cifar10_r18", "cpu/simclr_cifar10"])
def test_shipped_recipes_give_no_warning(name: str) -> None:
    recipe = load_recipe(shipped_recipes()[name])
    small = name == "quickstart"
    known = facts(
        images=1438 if small else 50_000,
        batch=recipe.train.batch_size,
        steps=recipe.train.epochs * (1438 if small else 50_000) // recipe.train.batch_size,
    )
    assert find_warnings(recipe, known) == []


def test_a_plan_and_a_run_say_the_same_warnings(tiny: Path) -> None:
    wrong = ["schedule.warmup_epochs=9", "augmentation.blur=true", "augmentation.blur_kernel=3",
             "optimizer={name: sgd, lr: 3.0}", "evaluate.0.k=20"]  # fmt: skip
    plan = make_plan(str(tiny), wrong, Silent()).to_json()
    found = [Advice(**warning) for warning in plan["warnings"]]
    expected = ["augmentation.blur", "optimizer.lr", "schedule.warmup_epochs", "evaluate.0.k"]
    assert paths(found) == expected
    heard = Heard()
    start(str(tiny), [*wrong, "train.max_steps=1"], display=heard)
    assert [
        f"warning: {advice}" for advice in found if advice.path != "schedule.warmup_epochs"
    ] == [text for text in heard.messages if text.startswith("warning: ") and "warmup" not in text]
    assert all("\n" not in text for text in heard.messages)


def test_half_precision_that_is_slow_on_this_cpu_warns(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"fp32": 1.0, "bf16": 0.4, "fp16": 7.6}
    monkeypatch.setattr(warnings, "cost_on_cpu", costs.__getitem__)
    chosen = ["train.precision=fp16", "evaluation_precision=bf16"]
    recipe = load_recipe(tiny, [*chosen, "train.device=cpu"])
    (found,) = find_warnings(recipe, facts())
    assert found.path == "train.precision"
    assert "fp16 takes 8 times as long as fp32 on this CPU" in found.message
    costs["bf16"] = 3.6
    assert paths(find_warnings(recipe, facts())) == ["train.precision", "evaluation_precision"]
    assert find_warnings(load_recipe(tiny, ["train.device=cpu"]), facts()) == []
    assert find_warnings(load_recipe(tiny, [*chosen, "train.device=cuda"]), facts()) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_cost_of_a_precision_is_of_this_cpu(precision: Precision) -> None:
    cost_on_cpu.cache_clear()
    before = torch.get_rng_state()
    assert 0.01 < cost_on_cpu(precision) < 1000
    assert torch.equal(torch.get_rng_state(), before)
    assert cost_on_cpu("fp32") == 1


def test_micro_batches_warn_of_batch_statistics_only(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["train.micro_batch_size=8"])
    normalised, plain = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2)), nn.LayerNorm(3)
    (found,) = network_warnings(recipe, normalised)
    assert found.path == "train.micro_batch_size"
    assert "2 BatchNorm layers see 8 images at a time, not 16" in found.message
    assert network_warnings(recipe, plain) == []
    assert network_warnings(load_recipe(tiny), normalised) == []
    assert "over each micro-batch of 8 images" in statements(recipe, normalised)[-1]
    assert "none" in statements(recipe, plain)[-1]
    (found,) = network_warnings(load_recipe(tiny, ["train.micro_batch_size=1"]), normalised)
    assert "layers see 1 image at a time" in found.message


def test_images_left_out_and_evaluators_skipped(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["train.batch_size=60"])
    (found,) = find_warnings(recipe, facts(images=96, batch=60, classes=10, steps=3))
    assert found.path == "train.batch_size"
    assert "36 of 96 images (38%)" in found.message
    assert "take 48 or fewer" in found.message
    assert find_warnings(recipe, facts(images=125, batch=60)) == []
    (found,) = find_warnings(recipe, facts(images=120, batch=60, classes=None))
    assert str(found) == "evaluate.0: knn will be skipped: it needs labels, the data has none"


def test_one_class_is_said_before_the_run(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["evaluate=[{name: linear}]"])
    known = replace(facts(images=96, classes=1), class_sizes=(96,))
    found = [str(each) for each in find_warnings(recipe, known)]
    assert any("evaluate.0: linear will be skipped: all labelled training" in w for w in found)


Case = tuple[type[Component], dict[str, Any], RunFacts, list[str]]
CASES: list[Case] = [
    (TimmBackbone, {"model": "resnet18"}, facts(size=32), ["stem"]),
    (TimmBackbone, {"model": "resnet50"}, facts(size=64), ["stem"]),
    (TimmBackbone, {"model": "resnet18"}, facts(size=96), []),
    (TimmBackbone, {"model": "resnet18", "stem": "small"}, facts(size=32), []),
    (TimmBackbone, {"model": "resnet18", "pretrained": True}, facts(size=32), []),
    (TimmBackbone, {"model": "resnet10t"}, facts(size=32), []),
    (TimmBackbone, {"model": "vit_tiny_patch16_224"}, facts(size=32), []),
    (SimCLRAugmentation, {"size": 32}, facts(), ["blur"]),
    (SimCLRAugmentation, {"size": 32, "blur": False}, facts(), []),
    (SimCLRAugmentation, {"size": 32, "blur_probability": 0.0}, facts(), []),
    (SimCLRAugmentation, {"size": 96}, facts(), []),
    (SimCLRAugmentation, {"size": 96, "views": [{"size": 32, "blur": True}, {}]}, facts(),
     ["views.0.blur"]),
    (KNN, {"k": 200}, facts(), []),
    (KNN, {"k": 200}, facts(images=1438, batch=128), ["k"]),
    (KNN, {"k": 200}, facts(images=300, classes=None), []),
    (SGD, {"lr": 0.06, "lr_scaling": "linear", "lr_reference_batch": 128}, facts(batch=512), []),
    (SGD, {"lr": 0.06, "lr_reference_batch": 128}, facts(batch=512), ["lr_reference_batch"]),
    (SGD, {"lr": 2.0}, facts(), ["lr"]),
    (SGD, {"lr": 2.0}, facts(batch=4096), []),
    (SGD, {"lr": 1e-4}, facts(), ["lr"]),
    (AdamW, {"lr": 0.06}, facts(), ["lr"]),
    (AdamW, {"lr": 1.5e-4, "lr_scaling": "linear"}, facts(batch=4096), []),
    (AdamW, {"lr": 2e-3}, facts(batch=128), []),
    (LARS, {"lr": 0.3, "lr_scaling": "linear"}, facts(batch=4096), []),
    (LARS, {"lr": 0.3, "lr_scaling": "linear", "lr_reference_batch": 4}, facts(), ["lr"]),
    (Cosine, {"warmup_epochs": 9.0}, facts(), []),
    (Cosine, {"warmup_epochs": 10.0}, facts(), ["warmup_epochs"]),
    (Constant, {"warmup_epochs": 11.5}, facts(), ["warmup_epochs"]),
    (Constant, {}, facts(), []),
]  # fmt: skip


@pytest.mark.slow  # 2 seconds
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[3]}")
def test_warnings_of_components(case: Case) -> None:
    component, fields, known, expected = case
    found = list(component.warnings(component.Config(**fields), known))
    assert [path for path, _ in found] == expected
    assert all(message and "\n" not in message for _, message in found)


def test_third_parties_warn_and_state_facts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core asks every component of a recipe; one that fails neither stops nor hides others."""
    recipe = load_recipe(tiny)
    method = recipe.method.cls
    monkeypatch.setattr(method, "warnings", classmethod(lambda *_: [("loss", "is rarely\n meant")]))
    monkeypatch.setattr(method, "plan_facts", classmethod(lambda *_: {"negatives per anchor": 7}))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("no dividend")

    monkeypatch.setattr(recipe.schedule.cls, "warnings", classmethod(fails))
    monkeypatch.setattr(recipe.schedule.cls, "plan_facts", classmethod(fails))
    found = find_warnings(recipe, facts(batch=16))
    assert str(found[0]) == "method.loss: is rarely meant"
    assert found[1].path == "schedule"
    assert "the warnings of schedule 'cosine' failed: ZeroDivisionError" in found[1].message
    known = plan_facts(recipe, facts(batch=16))
    assert known["negatives per anchor"] == 7, "the method is believed, not its loss"
    assert "ZeroDivisionError" in str(known["schedule"])


def test_losses_state_their_negatives() -> None:
    known = facts(batch=256)
    assert NTXent.plan_facts(NTXent.Config(), known) == {"negatives per anchor": 510}
    assert InfoNCE.plan_facts(InfoNCE.Config(), known) == {"negatives per anchor": 255}


# --- Text -----------------------------------------------------------------------------------------


def test_plot_stacks_blocks() -> None:
    lines = text_plot([0.0, 1.0, 2.0, 0.25], height=2, label="2")
    assert lines == ["         2 |  █", "         0 | ██▂"]
    assert text_plot([0.0, 0.0], height=2) == ["           |", "         0 |"]
    assert len(text_plot([], height=3)) == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.5, "0.5 s"), (99.0, "99 s"), (150.0, "2.5 min"), (9000.0, "2.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_table_names_everything(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sslkit.report.plan import print_plan

    print_plan(
        make_plan(str(tiny), ["evaluate.0.k=20"], Silent(), measure=True).to_json(), recipe=True
    )
    out = capsys.readouterr().out
    for part in (
        "micro_batch_size: null", "negatives per anchor", "30", "median of 6 steps", "evaluations",
        "learning rate", "█", "on resume", "warning: evaluate.0.k: 20 neighbours", "a checkpoint",
    ):  # fmt: skip
        assert part in out, part
