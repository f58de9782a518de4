"""Run folders as they are found: of other data, of other versions, incomplete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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
