"""What a finished run on series leaves: results, reports, a tracked run, exports, features."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from series_setup import OF_PICTURES, run, write_recipe
from sklearn.neighbors import KNeighborsClassifier
from sslkit_series.waves import Waves
from typer.testing import CliRunner

import sslkit
from sslkit.cli.app import app
from sslkit.errors import ExportError, SSLKitError

DATA = {"num_train": 84, "num_test": 40, "length": 32, "channels": 2, "periods": (1.0, 4.0)}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that MLflow knows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tracked")
    store = f"sqlite:///{folder}/mlflow.db"
    tracking = f"tracking={{name: mlflow, experiment: series, tracking_uri: '{store}'}}"
    return run(write_recipe(folder), tracking).run_dir


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Series (N, C, L) and labels, read apart from the core."""
    reader = Waves(Waves.Config(**DATA)).open("train" if split == "train" else "test")
    assert reader is not None
    return np.stack([reader.read(index) for index in range(len(reader))]), reader.labels


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.slow  # 12 seconds
def test_the_raw_baseline_is_the_series_mean_centred(tracked: Path) -> None:
    """kNN on raw series, by scikit-learn: cosine similarity, votes weighted by exp(sim / 0.1)."""
    (train, known), (test, labels) = arrays("train"), arrays("test")
    mean = train.mean(axis=0)
    flat = [(split - mean).reshape(len(split), -1).astype(np.float64) for split in (train, test)]
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in flat]
    neighbours = KNeighborsClassifier(
        5, metric="sqeuclidean", algorithm="brute", weights=lambda d: np.exp((1 - d / 2) / 0.1)
    )
    expected = neighbours.fit(units[0], known).score(units[1], labels)
    assert values(tracked)["knn"]["raw"] == pytest.approx(expected, abs=1e-6)


def values(run_dir: Path) -> dict[str, dict[str, float]]:
    """Evaluator -> subject -> accuracy."""
    found = json.loads((run_dir / "results.json").read_text())
    return {
        row["protocol"]: {name: each["value"] for name, each in row["values"].items()}
        for row in found["comparison"]
        if row["metric"].startswith("top1")
    }


def test_every_evaluator_measures_three_subjects(tracked: Path) -> None:
    found = values(tracked)
    for protocol in ("knn", "linear", "few_label"):
        assert set(found[protocol]) == {"raw", "untrained", "trained"}
    metrics = json.loads((tracked / "results.json").read_text())["trained"]["metrics"]
    assert {"collapse/std", "collapse/rankme", "collapse/alignment"} <= metrics.keys()


def test_mlflow_has_the_run(tracked: Path) -> None:
    with sqlite3.connect(tracked.parents[1] / "mlflow.db") as store:
        params = dict(store.execute("select key, value from params"))
        latest = dict(store.execute("select key, value from latest_metrics"))
        tags = dict(store.execute("select key, value from tags"))
    assert params["data.name"] == "waves"
    assert tags["sslkit.backbone"] == "resnet1d"
    assert tags["sslkit.dataset"] == "waves"
    assert latest["eval/knn/top1"] == values(tracked)["knn"]["trained"]
    assert latest["eval/knn/top1_raw"] == values(tracked)["knn"]["raw"]
    assert not [key for key in latest if "pixel" in key]


# --- Words ----------------------------------------------------------------------------------------


def command(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow  # 12 seconds
def test_no_text_speaks_of_images(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    recipe = write_recipe(tmp_path)
    texts = {"report": (tracked / "report.md").read_text()}
    texts["plan"] = command("plan", str(recipe))
    texts["eval"] = command("eval", str(tracked), "--protocol", "knn")
    texts["compare"] = command("compare", str(tracked), "--out", str(tmp_path / "compared"))
    assert "minus raw" in texts["compare"]
    assert "No maps and no neighbours: the samples are 2 x 32 float32" in texts["compare"]
    for format in ("onnx", "torch-export"):
        texts[f"export {format}"] = command("export", str(tracked), "--format", format)
        for path in sorted((tmp_path / "exports").glob(f"*-{format}/*.[mj]*")):
            texts[f"{format} {path.name}"] = path.read_text()
    for name, text in texts.items():
        assert len(text) > 50, name
        said = [line for line in text.splitlines() if OF_PICTURES.search(line)]
        assert not said, f"{name}: {said}"


def test_words_of_rare_cases(tmp_path: Path) -> None:
    """Evaluators that leave something out, batches that are too small, and collapse."""
    path = write_recipe(tmp_path)
    found = run(
        path,
        "evaluate=[{name: knn, k: 80}, {name: clustering}, {name: retrieval, k: [30]}, "
        "{name: few_label, labels_per_class: [21]}, {name: collapse, min_std: 0.9}]",
        "train.batch_size=60",
    )
    text = (found.run_dir / "report.md").read_text()
    assert "note: knn: k 80" in text
    assert not [line for line in text.splitlines() if OF_PICTURES.search(line)]


# --- Exports --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder_features(tracked: Path) -> tuple[torch.Tensor, torch.Tensor]:
    series = torch.from_numpy(arrays("test")[0])
    with torch.no_grad():
        return series, sslkit.load_encoder(tracked)(series)


def test_the_encoder_file_is_the_encoder_of_the_run(
    tracked: Path, encoder_features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    series, features = encoder_features
    last = sorted((tracked / "checkpoints").iterdir())[-1]
    with torch.no_grad():
        again = sslkit.load_encoder(tracked / "encoder.safetensors")(series)
        measured = sslkit.load_encoder(last)(series)
    assert torch.equal(again, features)
    torch.testing.assert_close(measured, features, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # 5 seconds
def test_onnx(
    tracked: Path, tmp_path: Path, encoder_features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    from sslkit.workflows.export.export import export_encoder

    series, features = encoder_features
    made = export_encoder(tracked, "onnx", tmp_path / "out")
    described = json.loads((tmp_path / "out/preprocess.json").read_text())
    assert described["input"]["shape"] == ["batch", 2, 32]
    session = onnxruntime.InferenceSession(made.file)
    (found,) = session.run(None, {described["input"]["name"]: series.numpy()})
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-5)
    assert made.difference.relative < 1e-5


@pytest.mark.slow  # 2 seconds
def test_torch_export(
    tracked: Path, tmp_path: Path, encoder_features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    from sslkit.workflows.export.export import export_encoder

    series, features = encoder_features
    made = export_encoder(tracked, "torch-export", tmp_path / "out")
    with torch.no_grad():
        found = torch.export.load(made.file).module()(series)
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)


def test_the_format_of_timm_is_refused_in_one_line(tracked: Path, tmp_path: Path) -> None:
    from sslkit.workflows.export.export import export_encoder

    with pytest.raises(ExportError) as raised:
        export_encoder(tracked, "timm", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert "timm" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_embed(
    tracked: Path, tmp_path: Path, encoder_features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    path = tmp_path / "features.parquet"
    command("embed", str(tracked), "--split", "test", "--out", str(path))
    table = pq.read_table(path)
    found = torch.tensor(table.column("feature").to_pylist())
    torch.testing.assert_close(found, encoder_features[1], rtol=1e-4, atol=1e-5)
    assert table.column("label").to_pylist() == arrays("test")[1].tolist()


def test_what_is_for_pictures_is_refused_in_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for override, said in (
        ("evaluate=[{name: finetune}]", "evaluate.0: fine-tunes on images"),
        ("backbone={name: timm, model: resnet10t}", "backbone: 'timm' takes square images"),
        ("augmentation={name: simclr, size: 24}", "makes views of images"),
        ("data={name: synthetic, size: 32}", "makes views of series"),
    ):
        refused("run", str(recipe), "-o", override, said=said)
    said = "a pack holds images, and the samples of 'waves' are 2 x 32 float32"
    refused("pack", str(recipe), "--out", str(tmp_path / "p.pack"), said=said)


def refused(*words: str, said: str) -> None:
    """As the command line shows it: one line, exit code 2."""
    error = CliRunner().invoke(app, list(words)).exception
    assert isinstance(error, SSLKitError), error
    assert error.exit_code == 2
    assert said in str(error)
    assert "\n" not in str(error)
