"""What a run, a plan, `eval` and `embed` make of its data: notes, and a test split that is divided
off."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sslkit.engine.display import Silent
from sslkit.errors import RecipeError, SSLKitError
from sslkit.workflows.embed import embed_source
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.feature_file import read_embeddings
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start
from sslkit.workflows.validate import validate
from tests.displays import Heard


def make(folder: Path, number: int, first: int = 0) -> Path:
    for i in range(number):
        place = folder / f"c{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(first + i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{first + i}.png")
    return folder


def overrides(train: Path, **fields: object) -> list[str]:
    data = {"name": "image_folder", "train": str(train), **fields}
    return [f"data={json.dumps(data)}", "evaluate=[{name: knn, k: 3}]"]


@pytest.mark.slow  # 2 seconds
def test_shared_images_are_told_at_once_and_in_the_report(tiny: Path, tmp_path: Path) -> None:
    train, test = make(tmp_path / "a", 60), make(tmp_path / "b", 9, first=100)
    (test / "c0" / "copy.png").write_bytes((train / "c1" / "1.png").read_bytes())
    (train / "c0" / "x.heic").write_bytes(b"x")
    display = Heard()
    changes = overrides(train, test=str(test))
    result = start(str(tiny), changes, display=display)
    shared = (
        f"1 of 10 test images are also training images ({test}/c0/copy.png is {train}/c1/1.png)"
    )
    unread = f"1 of 61 files in {train} are not read: 1 .heic; "
    report = (result.run_dir / "report.md").read_text()
    for text in (shared, unread):
        (line,) = [message for message in display.messages if text in message]
        assert line.startswith("warning: data: ")
        assert f"- data: warning: {text}" in report
    assert display.messages.index(next(m for m in display.messages if shared in m)) < 4
    plan = make_plan(str(tiny), changes, Silent()).to_json()
    assert [w["path"] for w in plan["warnings"] if "test images" in w["message"]] == ["data"]
    for path in test.rglob("1??.png"):
        path.unlink()
    with pytest.raises(
        RecipeError, match=r"data.test: 1 of 1 test images are also training images"
    ):
        start(str(tiny), changes, display=display)


def test_images_that_others_stood_in_for_are_told_at_the_end(tiny: Path, tmp_path: Path) -> None:
    """They were in a file of the run folder alone."""
    train, test = make(tmp_path / "a", 60), make(tmp_path / "b", 9, first=100)
    (train / "c1" / "1.png").write_bytes(b"x")
    display = Heard()
    result = start(
        str(tiny), overrides(train, test=str(test), max_corrupt_fraction=0.1), display=display
    )
    file = result.run_dir / "corrupt_images.json"
    (line,) = [message for message in display.messages if "could not be read" in message]
    assert line == (
        "warning: 1 of 60 images of the train split could not be read, and others stood in for "
        f"them: {file}"
    )
    assert json.loads(file.read_text())["num_unreadable"] == 1


@pytest.mark.slow  # 4 seconds
def test_a_fraction_gives_an_accuracy_and_is_the_same_everywhere(
    tiny: Path, tmp_path: Path
) -> None:
    train = make(tmp_path / "a", 60)
    found = validate(str(tiny), overrides(train))
    assert found.problems == ()
    assert any("knn will be skipped: there is no test split" in text for text in found.warnings)
    changes = overrides(train, test_fraction=0.2)
    found = validate(str(tiny), changes)
    assert found.problems == ()
    assert not [warning for warning in found.warnings if "skipped" in warning]
    result = start(str(tiny), changes, display=Silent())
    assert "eval/knn/top1" in result.metrics
    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["facts"]["num_images"] == 48
    assert environment["facts"]["num_test_images"] == 12
    again = evaluate_run(result.run_dir, ["knn"], [], Silent())
    assert again.results.trained.metrics["eval/knn/top1"] == result.metrics["eval/knn/top1"]
    written = embed_source(result.run_dir, tmp_path / "x.parquet", split="test")
    _, labels, features, origin = read_embeddings(written.path)
    assert len(features) == 12
    assert labels is not None
    assert labels.bincount().tolist() == [4, 4, 4]
    assert origin["fingerprint"] == environment["data"]["test"]
    other = start(str(tiny), [*changes, "seed=1"], display=Silent())
    found = json.loads((other.run_dir / "environment.json").read_text())
    assert found["data"] == environment["data"]


def rows(path: Path, labels: list[int], first: int = 0, missing: int = 0) -> Path:
    """A Parquet file of images, of which the first name files that are not there."""
    images = []
    for index in range(len(labels)):
        png = io.BytesIO()
        pixels = np.random.default_rng(first + index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(png, "PNG")
        images.append({"bytes": png.getvalue(), "path": None})
    for index in range(missing):
        images[index] = {"bytes": None, "path": f"gone-{index}.png"}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, struct), "label": labels}), path)
    return path


def test_one_class_is_no_question(tiny: Path, tmp_path: Path) -> None:
    """Every answer is right, also that of pixels and of the untrained encoder."""
    train, test = rows(tmp_path / "a.parquet", [0] * 24), rows(tmp_path / "b.parquet", [0] * 9, 24)
    data = {"name": "parquet", "train": str(train), "test": str(test)}
    display = Heard()
    changes = [f"data={json.dumps(data)}", "evaluate=[{name: knn, k: 3}]"]
    result = start(str(tiny), changes, display=display)
    reason = "all labelled training images are of one class"
    assert f"knn will be skipped: {reason}" in display.messages[0]
    assert not [name for name in result.metrics if name.startswith("eval/") and "top1" in name]
    assert f"- knn: skipped: {reason}" in (result.run_dir / "report.md").read_text()


def test_more_neighbours_than_a_class_has_images_are_said(tiny: Path, tmp_path: Path) -> None:
    train, test = make(tmp_path / "a", 30), make(tmp_path / "b", 9, first=90)
    changes = [*overrides(train, test=str(test)), "evaluate.0.k=20"]
    display = Heard()
    result = start(str(tiny), changes, display=display)
    said = [
        text for text in display.messages if "20 neighbours are more than the 10 images" in text
    ]
    assert len(said) == 1
    report = (result.run_dir / "report.md").read_text()
    assert "- note: knn: k 20 is more than the training images of 3 of 3 classes" in report


def test_classes_are_counted_by_the_labels_that_occur(tiny: Path, tmp_path: Path) -> None:
    train = rows(tmp_path / "x.parquet", [0, 5, 123_456] * 8)
    data = {"name": "parquet", "train": str(train)}
    changes = [f"data={json.dumps(data)}", "evaluate=[{name: few_label, labels_per_class: [10]}]"]
    (problem,) = validate(str(tiny), changes).problems
    expected = "10 labels of each of 3 classes are more than the 24 labelled training images"
    assert expected in str(problem)


def test_missing_files_of_rows_count_as_damaged(tiny: Path, tmp_path: Path) -> None:
    train = rows(tmp_path / "x.parquet", [0, 1, 2] * 8, missing=2)
    data = {"name": "parquet", "train": str(train), "max_corrupt_fraction": 0.1}
    changes = [f"data={json.dumps(data)}", "evaluate=[]"]
    start(str(tiny), changes, display=Silent())
    with pytest.raises(SSLKitError, match=r"2 of 24 images are unreadable.*gone-0\.png"):
        start(str(tiny), [*changes, "data.max_corrupt_fraction=0.05"], display=Silent())
