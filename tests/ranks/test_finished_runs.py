"""A run of two processes, finished, in the hands of commands of one process: they find in it what
they find in the run of one, and so does MLflow."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm
import torch
from torch import Tensor

from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.parallel.world import OneProcess, World
from sslkit.workflows.train import start
from tests.ranks.curves import LAYER_NORM, LN_HEAD, RECIPE
from tests.ranks.forked import on_ranks
from tests.soak.finished import TIMED, logged, store_faults

pytestmark = pytest.mark.slow  # 20 seconds for the pair of runs
BOUND = 1e-6
"""Of the largest magnitude. The runs are in float32 and differ by rounding, which BatchNorm and
AdamW would make more of; test_curves.py holds them in float64."""
SHORT = [
    *LAYER_NORM, f"method={{name: simclr, head: {LN_HEAD}}}", "train.max_steps=8",
    "train.log_every_steps=1", "callbacks=[{name: augmented_views}]",
    "evaluate=[{name: knn, k: 2}, {name: collapse}]", "expect={train/loss: {at_most: 9.0}}",
]  # fmt: skip


class Pair:
    """The same recipe, trained by one process and by two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.called: dict[str, list[list[int]]] = {}
        self.one, self.two = (self._train(name, size) for name, size in (("one", 1), ("two", 2)))

    def _train(self, name: str, size: int) -> Path:
        recipe = self.folder / f"{name}.yaml"
        tracking = f"tracking={{name: mlflow, tracking_uri: 'sqlite:///{self.store(name)}'}}"
        recipe.write_text(f"{RECIPE}runs_dir: {self.folder / name}\n")
        steps: list[int] = []

        def on_step(self: AugmentedViews, run: Any, metrics: Any, progress: Any) -> None:
            steps.append(progress.step)

        def work(world: World) -> list[int]:
            start(str(recipe), [*SHORT, tracking], display=Silent(), world=world)
            return steps

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AugmentedViews, "on_step", on_step)
            self.called[name] = [work(OneProcess())] if size == 1 else on_ranks(work, size)
        (run,) = (self.folder / name).iterdir()
        return run

    def store(self, name: str) -> Path:
        """Where MLflow keeps it."""
        return self.folder / f"{name}.db"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Both runs, tracked."""
    return Pair(tmp_path_factory.mktemp("pair"))


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, by the largest magnitude."""
    scale = expected.double().abs().max()
    return float((found.double() - expected.double()).abs().max() / scale.clamp_min(1e-30))


def call(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command prints, as JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    said = capsys.readouterr()
    assert not end.value.code, said.err
    return json.loads(said.out)


# --- What the run left ----------------------------------------------------------------------------


def test_the_log_is_the_same(pair: Pair) -> None:
    one, two = logged(pair.one), logged(pair.two)
    assert [(step, list(found)) for step, found in two] == [(step, list(x)) for step, x in one]
    for (_, found), (_, expected) in zip(two, one, strict=True):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_callbacks_were_called_once_a_step(pair: Pair) -> None:
    assert pair.called["one"] == [[*range(1, 9)]]
    assert pair.called["two"] == [[*range(1, 9)], []]


def test_mlflow_has_every_point_once(pair: Pair) -> None:
    for name, run in (("one", pair.one), ("two", pair.two)):
        assert store_faults(pair.store(name), run) == []
    one, two = (points(pair.store(name)) for name in ("one", "two"))
    assert {key: len(steps) for key, steps in two.items()} == {
        key: len(steps) for key, steps in one.items()
    }
    assert two["train/loss"] == [*range(1, 9)]


def points(store: Path) -> dict[str, list[int]]:
    """Metric -> the steps it was logged at."""
    found: dict[str, list[int]] = {}
    with closing(sqlite3.connect(store)) as database:
        rows = database.execute("SELECT key, step FROM metrics ORDER BY step")
        for key, step in rows:
            if not key.startswith(TIMED):
                found.setdefault(key, []).append(step)
    return found


# --- What commands find in it ---------------------------------------------------------------------


def test_an_export_is_the_same(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = []
    for name, run in (("one", pair.one), ("two", pair.two)):
        out = str(tmp_path / name)
        found = call(capsys, "export", str(run), "--format", "timm", "--out", out)
        shape = {"patch_size": 4, "img_size": 16, "embed_dim": 16, "depth": 2}  # LAYER_NORM's
        model = timm.create_model(
            "test_vit", checkpoint_path=found["file"], num_classes=0, **shape
        ).eval()
        with torch.no_grad():
            features.append(model(torch.rand(5, 3, 16, 16, generator=torch.manual_seed(0))))
    assert features[0].std() > 0.1
    assert distance(features[1], features[0]) < BOUND


def test_embedded_features_are_the_same(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = []
    for name, run in (("one", pair.one), ("two", pair.two)):
        out = tmp_path / f"{name}.parquet"
        call(capsys, "embed", str(run), "--out", str(out), "--split", "test")
        table = pq.read_table(out)
        features.append(torch.tensor(table.column("feature").to_pylist()))
    assert len(features[0]) == 16
    assert distance(features[1], features[0]) < BOUND


def test_an_evaluation_is_the_same(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Of protocols that the run had, and of one that it had not."""
    one, two = (
        scores(call(capsys, "eval", str(run), "--protocol", "knn,collapse,retrieval")["comparison"])
        for run in (pair.one, pair.two)
    )
    assert {("knn", "top1", "pixels"), ("retrieval", "map", "untrained")} <= one.keys(), one.keys()
    assert two == pytest.approx(one, rel=1e-5)
    by_run = scores(json.loads((pair.two / "results.json").read_text())["comparison"])
    again = {key: value for key, value in two.items() if key in by_run}
    assert len(again) > 6
    assert again == pytest.approx({key: by_run[key] for key in again}, rel=1e-5)


def scores(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Protocol, metric and subject -> value."""
    return {
        (row["protocol"], row["metric"], subject): found["value"]
        for row in rows
        for subject, found in row["values"].items()
    }


def test_a_comparison_finds_the_same(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In either; and refuses both side by side, since they are one seed of one recipe."""
    plain = "--map", "none", "--neighbours", "0"
    one, two = (
        call(capsys, "compare", str(run), "--out", str(tmp_path / run.parent.name), *plain)
        for run in (pair.one, pair.two)
    )
    assert "eval/knn/top1" in {row["metric"] for row in one["accuracies"]}
    assert leaves(two["accuracies"]) == pytest.approx(leaves(one["accuracies"]), rel=1e-5)
    assert one.keys() == two.keys()
    with pytest.raises(SystemExit):
        main(["compare", str(pair.one), str(pair.two), *plain])
    assert capsys.readouterr().err.endswith("both are seed 0 of one recipe; give one of them\n")


def leaves(tree: Any, path: str = "") -> dict[str, float]:
    """Every number of nested JSON by its path, without seconds."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in leaves(value, f"{path}/{key}").items()}
    return {path: tree} if isinstance(tree, int | float) and "seconds" not in path else {}


def test_expectations_are_met(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        call(capsys, "verify", "--run", str(run))["expectations"] for run in (pair.one, pair.two)
    )
    assert [each["met"] for each in two] == [True]
    assert two[0]["measured"] == pytest.approx(one[0]["measured"], rel=BOUND)
