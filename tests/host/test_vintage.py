"""A package of interface 1 with a component of every kind: each works with a DeprecationWarning
that names what to write, with the right numbers, or is refused in one line before anything runs."""

from __future__ import annotations

import csv
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_distributions import write_distribution

import sslkit
from sslkit import api
from sslkit.api import ScheduledNumber
from sslkit.api.evaluation_inputs import FeatureBank, FeatureInput
from sslkit.builtin.evaluators.dense_data import open_annotated
from sslkit.deprecation import InterfaceWarning
from sslkit.engine.display import Silent
from sslkit.errors import PluginError, RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import Registry
from sslkit.recipe import parse_recipe
from sslkit.runs.state import read_state
from sslkit.workflows.evaluate import evaluate_run

RECIPE = """\
name: vintage
data: {{name: v_masks}}
augmentation: {{name: v_crop, size: 16}}
backbone: {{name: v_conv}}
method: {{name: simclr, head: {{name: v_bottle}}, loss: {{name: v_align}}}}
optimizer: {{name: v_own, lr: 0.1, weight_decay: 0.01}}
schedule: {{name: v_halves}}
train: {{epochs: 1, batch_size: 16, device: cpu, loader_threads: 0, log_every_steps: 1}}
evaluate: {evaluate}
callbacks: [{{name: v_norm}}]
tracking: {{name: v_csv, folder: {folder}/csv}}
runs_dir: {folder}/runs
"""
WORKING = ("centroid", "named", "pairs", "embeddings", "projected", "allbaselines", "nobaselines")


@pytest.fixture
def vintage(site: Path) -> Registry:
    """The registry with the old package installed."""
    shutil.copytree(Path(__file__).parent / "vintage", site, dirs_exist_ok=True)
    write_distribution(site, "sslkit-vintage", {}, "vintage = sslkit_vintage")
    return load_plugins().registry


def recipe(folder: Path, *evaluators: str) -> str:
    entries = ", ".join(f"{{name: v_{name}}}" for name in evaluators)
    return RECIPE.format(evaluate=f"[{entries}]", folder=folder)


@pytest.mark.usefixtures("vintage")
def test_everything_that_works_runs_together_with_the_right_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vintage.yaml"
    path.write_text(recipe(tmp_path, *WORKING))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = sslkit.run(path)
    metrics = {name.removeprefix("eval/v_"): value for name, value in result.metrics.items()}
    assert metrics["named/is_trained"] == 1.0
    assert metrics["named/is_trained_pixels"] == metrics["named/is_trained_untrained"] == 0.0
    assert metrics["allbaselines/n"] == metrics["allbaselines/n_pixels"] == 32.0
    assert metrics["nobaselines/n"] == 32.0
    assert not any(name.startswith("nobaselines/n_") for name in metrics)
    assert (metrics["projected/width"], metrics["projected/width_pixels"]) == (8.0, 3 * 16 * 16)
    assert metrics["centroid/top1_pixels"] == 1.0  # its classes differ in brightness
    assert metrics["pairs/alignment"] > 0.0
    assert metrics["embeddings/moved"] > 0.0
    assert result.metrics["train/lr"] == pytest.approx(0.1 * 0.5)  # the steps of `v_halves`

    texts = {str(each.message) for each in said if each.category is DeprecationWarning}
    for old, new in (
        ("FeatureInput.name", "subject"),
        ("FeatureInput.positive_pairs", "views.pairs(num)"),
        ("FeatureInput.embeddings()", "embeddings.now()"),
        ("FeatureInput.untrained_embeddings", "embeddings.untrained()"),
        ("NoBaselines.baselines = False", "baselines = ()"),
        ("AllBaselines.baselines = True", 'baselines = ("pixels", "untrained")'),
        ("_Masks.mask of an ImageReader alone", "class _Masks(HasMasks, ImageReader)"),
    ):
        assert f"{old} ends with sslkit 0.3: write {new}" in texts
    lines = "\n".join(str(each.message) for each in said if each.category is InterfaceWarning)
    assert "write without_weights(config) instead of architecture" in lines
    assert "ImageAugmentation (was Augmentation)" in lines

    (tracked,) = (tmp_path / "csv").iterdir()
    assert (tracked / "status").read_text() == "finished"
    with (tracked / "metrics.csv").open(newline="") as file:
        assert {"train/loss", "eval/v_named/is_trained"} <= {row[1] for row in csv.reader(file)}
    norms = (result.run_dir / "weight_norm.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in norms] == ["1", "2", "3", "4"]
    groups = read_state(result.run_dir)["optimization"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.005}  # half of what the recipe says


REFUSED = {
    "method: {name: v_plain}": (
        "defines objective(self, embeddings, batch), which cannot be called as objective(self, "
        "embeddings, batch, progress): write objective(self, embeddings, batch, progress)"
    ),
    "method: {name: v_args}": "write objective(self, embeddings, batch, progress)",
    "method: {name: v_momentum}": (
        "sslkit.nn.ema.cosine_momentum is gone: take a ScheduledNumber, scheduled('cosine', "
        "start=0.996, end=1.0)"
    ),
    "evaluate: [{name: v_unlabelled}]": (
        "asks for bank.train_labels is None, and labels are never None: write (labels >= 0).any()"
    ),
    "evaluate: [{name: v_encoder}]": (
        "reads subject.encoder, which features come without: derive from ImageEvaluator, which is "
        "given it"
    ),
    "evaluate: [{name: v_imagesclass}]": "write a subclass of ImageEvaluator or OwnDataEvaluator",
    "evaluate: [{name: v_imagesinit}]": "write a subclass of ImageEvaluator or OwnDataEvaluator",
    "evaluate: [{name: v_pixelsclass}]": 'write baselines = ("untrained",)',
    "evaluate: [{name: v_pixelsinit}]": 'write baselines = ("untrained",)',
    "evaluate: [{name: v_owndata}]": "write a subclass of ImageEvaluator or OwnDataEvaluator",
    "evaluate: [{name: v_testonly}]": 'write splits = ("test",)',
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("block", REFUSED)
def test_what_no_longer_works_says_what_to_write(
    block: str, vintage: Registry, tmp_path: Path
) -> None:
    field = block.partition(":")[0]
    lines = [x for x in recipe(tmp_path).splitlines() if not x.startswith(f"{field}:")]
    with pytest.raises(RecipeError) as error:
        parse_recipe("\n".join([*lines, block]), "old.yaml", (), vintage)
    (line,) = str(error.value).splitlines()
    assert line.startswith("old.yaml:")
    assert "sslkit-vintage 1.0" in line
    assert REFUSED[block] in line


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_annotations_of_old_readers_are_found(kind: Any, vintage: Registry) -> None:
    slot = api.resolve_component(vintage, "dataset", {"name": f"v_{kind}", "num": 4})
    assert open_annotated(slot, kind).classes[-1] == "thing"
    other = api.resolve_component(vintage, "dataset", {"name": "v_data", "num": 4})
    with pytest.raises(RecipeError, match=f"v_data has no {kind} as it is configured"):
        open_annotated(other, kind)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_files_of_old_readers_are_found(vintage: Registry) -> None:
    for name, there in (("v_encoded", True), ("v_data", False)):
        slot = api.resolve_component(vintage, "dataset", {"name": name, "num": 4})
        assert isinstance(slot.build().open("train"), api.HasEncoded) is there


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["v_sgd", "v_decay"])
def test_old_optimisers_get_the_decay_that_the_recipe_names(name: str, vintage: Registry) -> None:
    block = {"name": name, "lr": 0.1, "weight_decay": 0.01}
    slot = api.resolve_component(vintage, "optimizer", block)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    groups = api.optimizer_groups(slot.config, [api.ParamGroup([("w", weight)])], 0.1)
    made = slot.build().create(groups)
    assert [group["weight_decay"] for group in made.param_groups] == [0.01]


@pytest.mark.slow  # 3 seconds
def test_an_evaluation_closes_a_run_whose_tracker_never_heard_its_end(
    vintage: Registry, tmp_path: Path
) -> None:
    """A kill right after the results were written: the run is finished, whoever was told."""
    path = tmp_path / "vintage.yaml"
    path.write_text(recipe(tmp_path, "centroid"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = sslkit.run(path).run_dir
        (tracked,) = (tmp_path / "csv").iterdir()
        (tracked / "status").unlink()
        state = json.loads((run / "tracker.json").read_text())
        assert (state["status"], state["closed"]) == ("finished", True)
        (run / "tracker.json").write_text(json.dumps(state | {"status": None, "closed": False}))
        sent = f"tracking={{name: v_csv, folder: {tmp_path / 'csv'}}}"
        evaluate_run(run, ["knn"], [sent, "evaluate.0.k=5"], Silent())
    assert (tracked / "status").read_text() == "finished"
    state = json.loads((run / "tracker.json").read_text())
    assert (state["status"], state["closed"]) == ("finished", True)
    assert list((tracked / "evaluations").iterdir())


# --- A number that was a float --------------------------------------------------------------------

USES: list[tuple[Callable[[Any], Any], Any]] = [
    (float, 0.5),
    (bool, True),
    (lambda n: 2.0 * n, 1.0),
    (lambda n: n + 1, 1.5),
    (lambda n: 1 - n, 0.5),
    (lambda n: n / 2, 0.25),
    (lambda n: 1 / n, 2.0),
    (lambda n: n**2, 0.25),
    (lambda n: -n, -0.5),
    (lambda n: n < 1, True),
    (lambda n: n >= 0.0, True),
    (lambda n: n > 1, False),
    (lambda n: n == 0.5, True),
    (lambda n: n != 0.5, False),
    (lambda n: f"{n:.2f}", "0.50"),
    (math.exp, math.exp(0.5)),
    (lambda n: (torch.ones(2) * n).tolist(), [0.5, 0.5]),
    (lambda n: (torch.ones(2) / n).tolist(), [2.0, 2.0]),
]


@pytest.mark.parametrize("use", range(len(USES)))
def test_a_constant_is_still_its_value(use: int) -> None:
    compute, value = USES[use]
    with pytest.warns(DeprecationWarning, match=r"write \.at\(progress\)"):
        assert compute(ScheduledNumber(0.5)) == value


@pytest.mark.parametrize("use", range(len(USES)))
def test_a_number_that_changes_is_no_plain_one(use: int, vintage: Registry) -> None:
    cosine = api.resolve_component(vintage, "schedule", {"name": "cosine"})
    with pytest.raises(PluginError, match=r"changes over the run .*: write .*\.at\(progress\)"):
        USES[use][0](ScheduledNumber(0.5, 1.0, cosine))


def test_numbers_compare_with_each_other_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ScheduledNumber(0.5) == ScheduledNumber(0.5) != ScheduledNumber(0.4)
        assert hash(ScheduledNumber(0.5)) == hash(0.5)
        assert str(ScheduledNumber(0.5)) == "ScheduledNumber(0.5)"


# --- What is there no longer ----------------------------------------------------------------------


def test_the_input_on_features_says_who_is_given_encoders() -> None:
    empty = torch.empty(0, 2)
    labels = torch.empty(0, dtype=torch.int64)
    given: Any = FeatureInput("trained", FeatureBank(empty, empty, labels, labels), seed=0)
    with pytest.raises(PluginError, match="FeatureInput has no images: derive from ImageEvaluator"):
        _ = given.images
    assert not hasattr(given, "imges")
    with (
        pytest.warns(DeprecationWarning, match="write embeddings.now"),
        pytest.raises(PluginError, match=r"write embeddings\.now\(\)"),
    ):
        given.embeddings()


def test_an_evaluator_of_no_kind_is_told_the_three(install: Any) -> None:
    parts = """
        from sslkit.api import Evaluator

        class Direct(Evaluator):
            def evaluate(self, given): ...
    """
    hooks = """
        from sslkit import hookimpl

        @hookimpl
        def register_evaluators():
            return {"direct": "direct_parts:Direct"}
    """
    files = {"direct_plugin.py": hooks, "direct_parts.py": parts}
    install("sslkit-direct", files, "direct = direct_plugin")
    with pytest.raises(PluginError, match=(
        r"does not implement parts of sslkit\.api\.Evaluator: derive from FeatureEvaluator, "
        r"ImageEvaluator or OwnDataEvaluator"
    )):  # fmt: skip
        load_plugins().registry.resolve("evaluator", "direct")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sslkit.nn.ema", "cosine_momentum"),
        ("sslkit.nn.classification", "knn_predict"),
        ("sslkit.nn.labels", "stratified_split"),
        ("sslkit.nn.logistic_regression", "penalised_factors"),
        ("sslkit.randomness", "epoch_order"),
    ],
)
def test_names_that_are_gone_say_what_there_is(module: str, name: str) -> None:
    with pytest.raises(ImportError, match=rf"^{module}\.{name} is gone: \w+"):
        exec(f"from {module} import {name}")  # noqa: S102
