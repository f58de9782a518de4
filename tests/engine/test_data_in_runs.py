"""What a run, a plan, `eval` and `embed` make of its data: notes, and a test split that is divided
off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit.embedding import embed_source, read_embeddings
from sslkit.engine.display import Display, Silent
from sslkit.errors import RecipeError
from sslkit.evaluations import evaluate_run
from sslkit.plan import make_plan
from sslkit.runs import find_problems, start


class Heard(Display):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


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
    plan = make_plan(str(tiny), changes, Silent())
    assert [w["path"] for w in plan["warnings"] if "test images" in w["message"]] == ["data"]
    for path in test.rglob("1??.png"):
        path.unlink()
    with pytest.raises(
        RecipeError, match=r"data.test: 1 of 1 test images are also training images"
    ):
        start(str(tiny), changes, display=display)


def test_a_fraction_gives_an_accuracy_and_is_the_same_everywhere(
    tiny: Path, tmp_path: Path
) -> None:
    train = make(tmp_path / "a", 60)
    warnings: list[str] = []
    assert find_problems(str(tiny), overrides(train), warnings) == ()
    assert any("knn will be skipped: there is no test split" in text for text in warnings)
    warnings.clear()
    changes = overrides(train, test_fraction=0.2)
    assert find_problems(str(tiny), changes, warnings) == ()
    assert not [warning for warning in warnings if "skipped" in warning]
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
