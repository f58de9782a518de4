"""Run folders as they are found: of other data, of other versions, incomplete."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError
from sslkit.experiment.encoder import load_encoder
from sslkit.experiment.resolve import resolve
from sslkit.experiment.restore import load_method
from sslkit.nn import safetensors_file
from sslkit.recipe import load_recipe
from sslkit.runs.checkpoint import FORMAT_WITHOUT_DIGEST, load
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.resume import find_unfinished
from sslkit.workflows.train import start

SHORT = ["train.max_steps=1", "evaluate=[]"]


@pytest.fixture
def unfinished(tiny: Path) -> Path:
    run_dir = start(str(tiny), SHORT, display=Silent()).run_dir
    (run_dir / "results.json").unlink()
    return run_dir


def test_auto_finds_the_run_of_this_recipe_and_seed(tiny: Path, unfinished: Path) -> None:
    def found(*overrides: str) -> Path | None:
        return find_unfinished(resolve(load_recipe(tiny, [*SHORT, *overrides])))

    assert found() == unfinished
    assert found("train.loader_threads=0") == unfinished
    assert found("seed=1") is None
    assert found("optimizer.lr=0.5") is None
    assert found("name=ti") is None


@pytest.mark.slow  # 2 seconds
def test_auto_trains_nothing_again_after_a_kill_behind_the_results(tiny: Path) -> None:
    """The tracker's state is that after a real `kill -9` there."""
    first = start(str(tiny), SHORT, display=Silent())
    file = first.run_dir / "tracker.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "status": None, "closed": False}))
    again = start(str(tiny), SHORT, resume="auto", display=Silent())
    assert (again.run_dir, again.status) == (first.run_dir, "finished")
    assert again.metrics["train/loss"] == first.metrics["train/loss"]
    file.write_text(json.dumps(told))
    assert start(str(tiny), SHORT, resume="auto", display=Silent()).run_dir != first.run_dir


def test_auto_passes_over_recipes_that_cannot_be_read(tiny: Path, unfinished: Path) -> None:
    other = unfinished.with_name("tiny-20990101-000000-0000")
    other.mkdir()
    (other / "recipe.resolved.yaml").write_text("name: tiny\nfield_of_a_later_version: 1\n")
    assert find_unfinished(resolve(load_recipe(tiny, SHORT))) == unfinished


def test_auto_takes_no_run_on_other_images(tiny: Path, tmp_path: Path) -> None:
    """The hash leaves the values of paths out."""

    def images(folder: str) -> str:
        (tmp_path / folder).mkdir()
        for index in range(16):
            pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
        return f"data={{name: image_folder, train: {tmp_path / folder}}}"

    here, there = images("here"), images("there")
    run_dir = start(str(tiny), [*SHORT, here], display=Silent()).run_dir
    (run_dir / "results.json").unlink()
    assert find_unfinished(resolve(load_recipe(tiny, [*SHORT, here]))) == run_dir
    assert find_unfinished(resolve(load_recipe(tiny, [*SHORT, there]))) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "no block"), ("{}", "'facts'")],
)
def test_environment_that_is_damaged(unfinished: Path, content: str | None, expected: str) -> None:
    environment = unfinished / "environment.json"
    environment.unlink() if content is None else environment.write_text(content)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_method(unfinished)
    assert "\n" not in str(caught.value)


def test_evaluating_with_another_architecture_is_one_line(unfinished: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit the recipe") as caught:
        evaluate_run(unfinished, ["knn"], ["method.head.out_dim=4"], Silent())
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # 2 seconds
def test_encoder_of_a_checkpoint_without_the_weights_it_started_from(
    tiny: Path, unfinished: Path
) -> None:
    again = start(str(tiny), [*SHORT, f"backbone.weights={unfinished}"], display=Silent()).run_dir
    (again / "encoder.safetensors").unlink()
    before = load_encoder(again)(torch.ones(2, 3, 16, 16))
    shutil.rmtree(unfinished)
    assert torch.equal(load_encoder(again)(torch.ones(2, 3, 16, 16)), before)


def test_facts_survive_the_way_through_json(unfinished: Path) -> None:
    _, facts, _ = load_method(unfinished)
    saved = json.loads((unfinished / "environment.json").read_text())["facts"]
    assert facts.total_steps == saved["total_steps"] == 1
    assert facts.image_size == (16, 16)
    assert [view.size for view in facts.views] == [16, 16]


def test_an_encoder_of_other_names_is_refused_in_one_line(tiny: Path) -> None:
    run_dir = start(str(tiny), SHORT, display=Silent()).run_dir
    path = run_dir / "encoder.safetensors"
    described = safetensors_file.describe(path)
    assert described is not None
    others = {f"other.{name}": value for name, value in safetensors_file.load(path).items()}
    safetensors_file.save(path, others, described)
    with pytest.raises(CheckpointError, match=r"cannot be read as an encoder: .*Missing key"):
        load_encoder(run_dir)


def with_metadata(state: dict[str, Any]) -> OrderedDict[str, Any]:
    found: OrderedDict[str, Any] = OrderedDict(state["method"])
    found._metadata = [1]  # type: ignore[attr-defined]  # of torch, a mapping
    return found


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", lambda state: torch.zeros(3), "do not fit the recipe"),
        ("method", lambda state: [1], "do not fit the recipe"),
        ("method", lambda state: {**state["method"], 1: torch.zeros(1)}, "do not fit the recipe"),
        ("method", with_metadata, "do not fit the recipe"),
        ("format", lambda state: torch.zeros(3), r"checkpoint format tensor\(\[0., 0., 0.\]\)"),
        ("format", lambda state: "x" * 10_000, "checkpoint format 'xxx"),
    ],
)
def test_a_checkpoint_of_anybodys_is_refused_in_one_line(
    unfinished: Path, key: str, value: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    (path,) = (unfinished / "checkpoints").iterdir()
    state = load(path)
    torch.save({**state, "format": FORMAT_WITHOUT_DIGEST, key: value(state)}, path)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_method(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps_per_epoch", torch.zeros(3), r"has tensor\(\[0., 0., 0.\]\) steps an epoch"),
        ("steps_per_epoch", "x" * 10_000, "has 'xxx"),
        ("step", 10**15, "is at step 1,000,000,000,000,000, and the run ends at step 1; it is dam"),
    ],
)
def test_a_resume_from_a_state_of_anybodys_is_refused_in_one_line(
    unfinished: Path, key: str, value: object, expected: str
) -> None:
    """A step beyond the end would be a run that is done."""
    (path,) = (unfinished / "checkpoints").iterdir()
    torch.save({**load(path), "format": FORMAT_WITHOUT_DIGEST, key: value}, path)
    with pytest.raises(CheckpointError, match=expected) as caught:
        start(None, [], resume=str(unfinished), display=Silent())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (unfinished / "results.json").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", True), ("channels", True), ("shape", [True, 16, 16])]
)
def test_an_encoder_file_whose_sizes_are_no_numbers_is_refused(
    unfinished: Path, key: str, value: object
) -> None:
    file = unfinished / "encoder.safetensors"
    described = safetensors_file.describe(file)
    assert described is not None
    safetensors_file.save(file, safetensors_file.load(file), {**described, key: value})
    with pytest.raises(CheckpointError, match="its metadata is not that of this version"):
        load_encoder(file)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"name": "timm", "model": "vit_giant_patch14_dinov2"}, "has far more than its [0-9,]+ we"),
        ({"name": "timm", "model": "test_resnet", "model_args": {"x": 1}}, "argument 'x'"),
        ({"name": "timm", "model": "test_resnet", "field": 1}, "backbone.field: Extra inputs"),
        ({"name": "os:system"}, "unknown backbone 'os:system'"),
        ({"name": 3}, "cannot be read as an encoder"),
        ({"model": "test_resnet"}, "cannot be read as an encoder"),
    ],
)
def test_an_encoder_file_that_describes_no_network_of_its_weights_is_refused(
    unfinished: Path, backbone: dict[str, Any], expected: str
) -> None:
    """The largest one here would take 4.5 GB, for a file of 400 KB."""
    file = unfinished / "encoder.safetensors"
    described = safetensors_file.describe(file)
    assert described is not None
    weights = safetensors_file.load(file)
    safetensors_file.save(file, weights, {**described, "backbone": backbone})
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_encoder(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [("hidden_dim: 16", "hidden_dim: 50000000"), ("test_resnet", "vit_giant_patch14_dinov2")],
)
def test_a_run_folder_that_describes_more_than_its_weights_is_refused(
    unfinished: Path, old: str, new: str
) -> None:
    recipe = unfinished / "recipe.resolved.yaml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=r"has far more than its [0-9,]+ weights") as caught:
        load_method(unfinished)
    assert "\n" not in str(caught.value)
