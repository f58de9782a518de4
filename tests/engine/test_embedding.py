"""`sslkit embed`: features to Parquet and back."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import sslkit
from sslkit.cli import main
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.data.pack_writer import only_writer
from sslkit.engine.display import Silent
from sslkit.errors import DataError, RecipeError, RunFolderError
from sslkit.evaluation.features import extract, state_digest
from sslkit.experiment.stores import open_stores
from sslkit.nn.compute import Compute
from sslkit.recipe import load_recipe
from sslkit.workflows import embed as embedding
from sslkit.workflows.embed import embed_source
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.feature_file import FeatureFile, read_embeddings
from sslkit.workflows.nearest import find_nearest
from sslkit.workflows.train import start


@pytest.fixture
def run(tiny: Path) -> Path:
    return start(tiny, ["train.max_steps=2", "evaluate=[]"], display=Silent()).run_dir


def sslkit_command(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


def photos(folder: Path, count: int) -> Path:
    """Images of several sizes, some of which are damaged."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + number % 3, 24, 3)
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("row_group", [8192, 40])
def test_round_trip(
    run: Path, tmp_path: Path, row_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_ROW_GROUP", row_group)
    monkeypatch.setattr(embedding, "_BATCH", 20)
    out = tmp_path / "new" / "features.parquet"
    written = embed_source(run, out, device="cpu")
    assert written.rows == 96
    assert written.left_out == 0

    encoder = sslkit.load_encoder(run)
    train = open_stores(load_recipe(run / "recipe.resolved.yaml"), Silent()).train
    batches = evaluation_batches(train, encoder.preprocess, 20, "cpu")
    expected = extract(encoder, batches, Compute(torch.device("cpu"), "fp32", channels_last=False))
    indices, labels, features, origin = read_embeddings(out)
    assert torch.equal(indices, torch.arange(96))
    assert torch.equal(labels, train.labels)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)
    assert origin["run"] == str(run)
    assert origin["encoder"] == state_digest(encoder)
    assert origin["preprocess"]["size"] == encoder.preprocess.size
    assert origin["fingerprint"] == train.fingerprint
    assert origin == json.loads(json.dumps(written.origin))

    schema = parquet.read_schema(out)
    assert schema.field("feature").type == pa.list_(pa.float32(), encoder.num_features)
    assert parquet.ParquetFile(out).num_row_groups == -(-96 // row_group)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow  # 2 seconds
def test_other_data_splits_and_checkpoints(run: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    (checkpoint,) = (run / "checkpoints").iterdir()
    whole = embed_source(run, out, str(tiny), ["data.num_test=10"], split="test", device="cpu")
    first = read_embeddings(out)
    assert whole.rows == 10
    embed_source(checkpoint, out, str(tiny), ["data.num_test=10"], split="test", device="cpu")
    assert torch.equal(read_embeddings(out)[2], first[2])
    alone = run / "encoder.safetensors"
    block = "{name: synthetic, num_train: 8, num_test: 10, size: 16}"
    embed_source(alone, out, block, split="test", device="cpu")
    assert torch.equal(read_embeddings(out)[2], first[2])


def test_unreadable_images_have_no_row(run: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 30)
    (folder / "cat" / "003.png").write_bytes(b"no image")
    out = tmp_path / "features.parquet"
    block = f"{{name: image_folder, train: {folder}, max_corrupt_fraction: 0.1}}"
    written = embed_source(run, out, block, device="cpu")
    indices, labels, features, origin = read_embeddings(out)
    assert written.rows == len(indices) == len(features) == 29
    assert written.left_out == 1
    assert indices.tolist() == [0, *range(2, 30)]
    assert origin["class_names"] == ["cat", "dog"]
    assert labels.tolist() == [0] * 14 + [1] * 15


def test_a_stop_leaves_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "to" / "features.parquet"
    embed_source(run, out, device="cpu")
    before = out.read_bytes()
    monkeypatch.setattr(embedding, "_ROW_GROUP", 40)
    calls = []

    def fail(*args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # the check, a row group, then
            raise KeyboardInterrupt
        return extract(*args, **options)

    monkeypatch.setattr(embedding, "extract", fail)
    with pytest.raises(sslkit.errors.SSLKitError, match="stopped; nothing was kept"):
        embed_source(run, out, device="cpu")
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow  # 2 seconds
def test_maps_of_rows_from_several_row_groups(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding, "_ROW_GROUP", 40)
    out = tmp_path / "features.parquet"
    assert sslkit_command("embed", str(run), "--out", str(out), "--map", "pca,tsne") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        str(tmp_path / "features.pca.png"), str(tmp_path / "features.tsne.png"),
    ]  # fmt: skip
    assert min(Image.open(tmp_path / "features.pca.png").size) > 300
    rows = torch.tensor([90, 3, 39, 40, 3])
    _, _, features, origin = read_embeddings(out)
    assert torch.equal(FeatureFile(out).rows(rows), features[rows])
    few = tmp_path / "few.parquet"
    embed_source(run, few, json.dumps({**origin["data"], "num_train": 5}), device="cpu")
    with pytest.raises(DataError, match="a map takes 8 images, there are 5"):
        embedding.draw_maps(few, ["pca"])


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features.parquet"
    words = ["embed", str(run), "--out", str(out), "--split", "test", "--device", "cpu"]
    assert sslkit_command(*words) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{out}: 48 features of width ")
    assert "embedding: split=test images=48 of=48" in shown.err
    assert sslkit_command(*words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 48
    assert facts["origin"]["split"] == "test"


def test_rows_have_names_and_neighbours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against scikit-learn, over several row groups, by path, by its end, and by index."""
    from sklearn.metrics.pairwise import cosine_similarity

    monkeypatch.setattr(embedding, "_ROW_GROUP", 7)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 16, 16, 3), dtype=np.uint8)
    names = [tmp_path / "images" / f"{number % 3}" / f"{number}.png" for number in range(30)]
    for name, image in zip(names, pixels, strict=True):
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(name)
    source = json.dumps({"name": "image_folder", "train": str(tmp_path / "images")})
    out = tmp_path / "features.parquet"
    asked = names[4]
    words = ["embed", str(run), source, "--out", str(out), "--device", "cpu"]
    assert sslkit_command(*words, "--nearest", str(asked), "--neighbours", "5", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["nearest"]
    table = parquet.read_table(out)
    images = table.column("image").to_pylist()
    assert sorted(images) == sorted(map(str, names))
    features = np.array(table.column("feature").to_pylist())
    place = images.index(str(asked))
    similar = cosine_similarity(features)[place]
    order = [row for row in np.argsort(-similar, kind="stable") if row != place][:5]
    assert rows[0] == {"index": place, "label": 1, "image": str(asked), "similarity": 1.0}
    assert [row["image"] for row in rows[1:]] == [images[row] for row in order]
    assert [row["similarity"] for row in rows[1:]] == pytest.approx(similar[order], abs=1e-6)
    assert [row["label"] for row in rows] == [int(Path(row["image"]).parent.name) for row in rows]
    for query in ("1/4.png", str(place)):
        assert sslkit_command("embed", str(out), "--nearest", query, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found[:6] == rows
        assert len(found) == 11
    assert sslkit_command("embed", str(out), "--nearest", "99") == 2
    assert "is none of its 30 rows" in capsys.readouterr().err
    (tmp_path / "x.parquet").write_text("no")
    assert sslkit_command("embed", str(tmp_path / "x.parquet"), "--nearest", "1") == 1
    assert "not readable as a file of `sslkit embed`" in capsys.readouterr().err


@pytest.mark.slow  # 2 seconds
def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    with pytest.raises(RecipeError, match=r"takes images with 3 channel\(s\)"):
        embed_source(run, out, "{name: digits}", device="cpu")
    block = f"{{name: image_folder, train: {photos(tmp_path / 'photos', 4)}}}"
    with pytest.raises(RecipeError, match="--split test: 'image_folder' has no test images"):
        embed_source(run, out, block, split="test", device="cpu")
    with pytest.raises(RecipeError, match="an encoder alone has no data"):
        embed_source(run / "encoder.safetensors", out, device="cpu")
    with pytest.raises(RunFolderError, match=r"typo: no such run folder or checkpoint"):
        embed_source(tmp_path / "typo", out, device="cpu")
    with pytest.raises(RecipeError, match=f"--out {tmp_path}: is a folder"):
        embed_source(run, tmp_path, device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"--out .*/file/x: cannot be made \("):
        embed_source(run, tmp_path / "file" / "x", device="cpu")
    assert not out.exists()
    out.write_bytes(b"other")
    with pytest.raises(DataError, match="not readable as a file of `sslkit embed`"):
        read_embeddings(out)


ROWS = {
    "index": pa.array(range(4)),
    "image": pa.array(["a/0", "a/1", "a/2", "a/3"]),
    "feature": pa.FixedSizeListArray.from_arrays(
        pa.array([1.0, 0, 0.9, 0.1, 0, 1, 0.5, 0.5], pa.float32()), 2
    ),
}
"""What a file of features holds at least."""


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("feature", None),
        ("index", None),
        ("image", None),
        ("feature", pa.array(["x"] * 4)),
        ("feature", pa.array([[1.0], [1.0, 2.0], [], [1.0]])),
        ("feature", pa.FixedSizeListArray.from_arrays(pa.array(range(8)), 2)),
        ("feature", pa.array([None, *[[1.0, 2.0]] * 3], pa.list_(pa.float32(), 2))),
        ("image", pa.array(range(4))),
        ("image", pa.array([{"a": 1}] * 4)),
        ("label", pa.array(["a"] * 4)),
    ],
)
def test_neighbours_in_other_parquet_files_are_refused_in_one_line(
    column: str, values: pa.Array | None, tmp_path: Path
) -> None:
    columns = {name: each for name, each in {**ROWS, column: values}.items() if each is not None}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError) as refused:
        find_nearest(tmp_path / "x.parquet", "1", 2)
    assert len(str(refused.value).splitlines()) == 1
    assert "x.parquet: " in str(refused.value)


def test_features_that_are_not_finite_are_nobodys_neighbours(tmp_path: Path) -> None:
    """NaN would be the nearest of all."""
    values = pa.array([1.0, 0, float("nan"), 0.1, 0, 1, 0.5, 0.5], pa.float32())
    feature = pa.FixedSizeListArray.from_arrays(values, 2)
    parquet.write_table(pa.table({**ROWS, "feature": feature}), tmp_path / "x.parquet")
    found = find_nearest(tmp_path / "x.parquet", "0", 3)
    assert [row.index for row in found] == [0, 3, 2]
    assert [row.similarity for row in found] == pytest.approx([1.0, 0.5**0.5, 0.0])
    with pytest.raises(DataError, match="the feature of 1 is not finite"):
        find_nearest(tmp_path / "x.parquet", "1", 3)


def test_neighbours_are_looked_for_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group of a file from elsewhere may be of any length."""
    monkeypatch.setattr("sslkit.workflows.feature_file._ROWS", 3)
    parquet.write_table(pa.table(ROWS), tmp_path / "x.parquet")
    found = find_nearest(tmp_path / "x.parquet", "a/0", 3)
    assert [row.index for row in found] == [0, 1, 3, 2]


def test_what_a_killed_process_left_is_removed_and_a_second_one_refused(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.parquet"
    left, other = tmp_path / ".features.parquet.abcd1234.tmp", tmp_path / ".x.parquet.abcd1234.tmp"
    left.write_bytes(b"part")
    other.write_bytes(b"part")
    block = f"{{name: image_folder, train: {photos(tmp_path / 'photos', 4)}}}"
    with only_writer(out), pytest.raises(RecipeError, match="another process is writing"):
        embed_source(run, out, block, device="cpu")
    assert left.exists()
    embed_source(run, out, block, device="cpu")
    assert not left.exists()
    assert other.exists()
    assert not out.with_name("features.parquet.lock").exists()


def test_data_of_another_kind_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    block = "{name: waves, num_train: 4, num_test: 4}"
    line = r"takes samples of 3 x .* uint8 and those of the data are 1 x 128 float32; choose other"
    with pytest.raises(RecipeError, match=line):
        embed_source(run, out, block, device="cpu")
    with pytest.raises(RecipeError, match=line):
        embed_source(run / "encoder.safetensors", out, block, device="cpu")
    with pytest.raises(RecipeError, match=line):
        evaluate_run(run, ["knn"], [f"data={block}"], Silent())


@pytest.mark.slow  # 2 seconds
def test_a_full_disk_is_one_line_that_names_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    source = f"{{name: image_folder, train: {photos(tmp_path / 'photos', 40)}}}"
    assert sslkit_command("embed", str(run), source, "-O", str(out)) == 0
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert sslkit_command("embed", str(run), source, "-O", str(out)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: --out {out}: cannot be written (File too large); nothing was k"
    )
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".out*"))
    assert sslkit_command("embed", str(run), source, "-O", str(out)) == 0
