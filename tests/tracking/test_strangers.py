"""Run folders that somebody sent: nothing outside them is read, written or uploaded; no file of
them fills the memory or hangs; no command contacts a server that only they name."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sslkit.api import RunView
from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, RunFolderError, SSLKitError
from sslkit.files import open_file, parse_json, read_bytes, read_json
from sslkit.runs.environment_file import read_environment
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, read_from, read_lines, truncate_after
from sslkit.runs.upload_state import UploadState
from sslkit.tracking.log import RunLog, sync
from sslkit.workflows.embed import embed_source
from sslkit.workflows.evaluate import evaluate_run
from sslkit.workflows.export.export import export_encoder
from sslkit.workflows.track import sync_run
from sslkit.workflows.train import start

from .conftest import MemoryTracker

LINE = '{"step": 1, "time_ms": 2, "metrics": {"a": 1}}\n'


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "secret.txt"
    path.parent.mkdir()
    path.write_text("private")
    return path


# --- Uploads --------------------------------------------------------------------------------------


def test_only_files_inside_the_folder_are_uploaded(
    folder: RunFolder, view: RunView, secret: Path
) -> None:
    """`tracker.json` names files of the machine in every way that there is."""
    with RunLog(folder, MemoryTracker(), view) as log:
        log.log({"a": 1.0}, 1)
    root = folder.path
    (root / "report.md").write_text("fine")
    (root / "link.md").symlink_to(secret)
    (root / "figures" / "out").symlink_to(secret.parent)
    os.mkfifo(root / "pipe")
    climbing = os.path.relpath(secret, root)
    names = [
        str(secret), climbing, f"figures/../{climbing}", "link.md", "figures/out/secret.txt",
        "pipe", "figures", ".", "", "/dev/zero", f"{root}/report.md",
    ]  # fmt: skip
    cursor = UploadState.load(folder.tracker)
    assert cursor is not None
    for name in names:
        cursor.add_artifact(name, "")
    cursor.add_artifact("report.md", "../../above")
    cursor.add_artifact("report.md", "good")
    cursor.save(folder.tracker)
    service = MemoryTracker()
    sent = sync(folder, service)
    assert {(name, place) for name, place, _ in service.uploads} == {
        ("report.md", "good"), ("report.md", ""),  # the last name is the file inside, in full
    }  # fmt: skip
    assert all(content == b"fine" for _, _, content in service.uploads)
    assert len(sent.skipped) == len(names)
    assert sync(folder, service).skipped == ()


def test_a_run_uploads_nothing_of_elsewhere(folder: RunFolder, view: RunView, secret: Path) -> None:
    with RunLog(folder, MemoryTracker(), view) as log, pytest.raises(ValueError, match="subpath"):
        log.artifact(secret)


@pytest.mark.parametrize(
    "damage",
    [
        {"offset": -1}, {"offset": "x"}, {"offset": 10**400}, {"run_id": 5}, {"sent": {"a": [1]}},
        {"artifacts": [{"path": 1}]}, {"artifacts": {}}, {"status": "odd"}, {"closed": []},
    ],
)  # fmt: skip
def test_damaged_cursor_counts_as_none(folder: RunFolder, damage: dict[str, object]) -> None:
    UploadState("t", "name", {}, {}).save(folder.tracker)
    assert UploadState.load(folder.tracker) is not None
    record = json.loads(folder.tracker.read_text())
    folder.tracker.write_text(json.dumps({**record, **damage}))
    assert UploadState.load(folder.tracker) is None


# --- Links, pipes, devices ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", ".lock", ".owner", "x/y"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_folder_with_links_or_pipes_is_refused(
    folder: RunFolder, secret: Path, name: str, kind: str
) -> None:
    folder.write_text(folder.recipe, "name: x\n")
    folder.close()
    path = folder.path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(secret if kind == "link" else secret.with_name("absent"))
    for write in (False, True):
        with pytest.raises(RunFolderError, match=rf"{name}: is (a link|no regular file)"):
            RunFolder.open(folder.path, write=write)
    assert secret.read_text() == "private"
    assert [each.name for each in secret.parent.iterdir()] == ["secret.txt"]


def test_a_file_is_opened_through_no_link(tmp_path: Path, secret: Path) -> None:
    """Also where the folder changes after it was looked at."""
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "f").write_text("inside")
    (root / "up").symlink_to(secret.parent)
    (root / "same").symlink_to(root / "real")
    (root / "f").symlink_to(secret)
    assert read_bytes(root / "real" / "f", 10, inside=root) == b"inside"
    for name in ("up/secret.txt", "same/f", "f", "real/../f", "../elsewhere/secret.txt"):
        with pytest.raises(ValueError, match=r"link|no file in|outside"):
            open_file(root / name, inside=root)
    with pytest.raises(ValueError, match="outside"):
        open_file(secret, inside=root)
    with pytest.raises(ValueError, match="no regular file"):
        open_file(root / "real", inside=root)
    with pytest.raises(ValueError, match="no regular file"):
        open_file(Path("/dev/zero"))


# --- Sizes ----------------------------------------------------------------------------------------


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def peak_mb(function: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"9" * 5000, "limit"),
        (b'["\\ud800"]', "surrogate"),
        (b"\xff", "codec"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_odd_json_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_json(content)
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_environment(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_huge_files_are_refused_by_their_size(tmp_path: Path) -> None:
    sparse(tmp_path / "environment.json", 18 << 30)
    sparse(tmp_path / "metrics.jsonl", 18 << 30)

    def read_all() -> None:
        with pytest.raises(CheckpointError, match="larger than 16 MiB"):
            read_environment(tmp_path)
        with pytest.raises(RunFolderError, match="larger than 128 MiB"):
            list(read_lines(tmp_path / "metrics.jsonl"))
        with pytest.raises(ValueError, match="larger than"):
            read_json(tmp_path / "metrics.jsonl")

    assert peak_mb(read_all) < 1


@pytest.mark.slow  # 2 seconds
def test_a_long_line_is_left_out_and_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.write(LINE.encode())
        file.seek(100 << 20, os.SEEK_CUR)
        file.write(b"\n" + LINE.encode())
    expected = [MetricLine(1, 2, {"a": 1.0})] * 2

    def read_all() -> None:
        assert list(read_lines(path)) == expected
        lines, offset = read_from(path, 0)
        lines += read_from(path, offset)[0]
        assert lines == expected
        assert truncate_after(path, None) == 1

    assert peak_mb(read_all) < 5
    assert path.stat().st_size > 100 << 20  # whole lines stay, those of others too


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1e400, "time_ms": 2, "metrics": {}}',
        b'{"step": -1, "time_ms": 2, "metrics": {}}',
        b'{"step": 1, "time_ms": 9' + b"9" * 30 + b', "metrics": {}}',
        b'{"step": NaN, "time_ms": 2, "metrics": {}}',
        b'{"step": 1, "time_ms": 2, "metrics": {"a": 1' + b"0" * 400 + b"}}",
        b'{"step": 1, "time_ms": 2, "metrics": {"a": true}}',
        b'{"step": 1, "time_ms": 2, "metrics": {"a": [1]}}',
        b'{"step": 1, "time_ms": 2, "metrics": []}',
        b'{"step": 1, "time_ms": 2, "metrics": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        b'[{"step": 1}]',
        b"null",
        b"\x00" * 50,
    ],
)
def test_lines_of_no_log_are_left_out(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + LINE.encode())
    assert list(read_lines(path)) == [MetricLine(1, 2, {"a": 1.0})]
    assert truncate_after(path, None) == 1


@pytest.mark.parametrize(
    "facts",
    [
        [], {}, {"channels": 10**9}, {"views": []}, {"views": [{"size": -3}]}, {"channels": "x"},
        {"views": [{"size": 10**30}]}, {"image_size": [1, 2, 3]}, {"image_size": "large"},
    ],
)  # fmt: skip
def test_facts_that_no_run_has(facts: object, tmp_path: Path) -> None:
    good = {
        "num_images": 96, "channels": 3, "image_size": [16, 16], "num_classes": None,
        "batch_size": 16, "steps_per_epoch": 6, "total_steps": 6,
        "views": [{"size": 16, "role": "global"}],
    }  # fmt: skip
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"facts": good}))
    assert read_environment(tmp_path).facts.channels == 3
    path.write_text(json.dumps({"facts": {**good, **facts} if facts else facts}))
    with pytest.raises(CheckpointError) as caught:
        _ = read_environment(tmp_path).facts
    assert len(str(caught.value).splitlines()) == 1


# --- Servers --------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[SimpleNamespace]:
    """A server that counts who comes, and closes the connection."""
    found = SimpleNamespace(connections=0, uri="")
    with socket.create_server(("127.0.0.1", 0)) as server:
        found.uri = f"http://127.0.0.1:{server.getsockname()[1]}"

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                found.connections += 1
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield found
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.slow  # 5 seconds
def test_commands_on_a_received_run_contact_no_server_that_it_names(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = start(str(tiny), ["train.max_steps=2"], display=Silent()).run_dir
    received = shutil.copytree(run, tmp_path / "received" / run.name)
    with listening() as server:
        recipe = received / "recipe.resolved.yaml"
        block = f"{{name: mlflow, tracking_uri: '{server.uri}'}}"
        recipe.write_text(
            recipe.read_text().replace("tracking:\n  name: none", f"tracking: {block}")
        )
        assert server.uri in recipe.read_text()
        monkeypatch.chdir(tmp_path)
        main_ok("eval", str(received))
        assert f"sslkit sync {received}" in capsys.readouterr().err
        evaluate_run(received, ["knn"], ["evaluate.0.k=3"], Silent())
        embed_source(str(received), tmp_path / "features.parquet")
        export_encoder(str(received), "timm", tmp_path / "export")
        main_ok("compare", str(received), "-O", str(tmp_path / "c"), "--map", "none")
        assert server.connections == 0
        assert not (tmp_path / "mlflow.db").exists()

        with pytest.raises(SSLKitError, match="did not take it"):
            sync_run(received)
        assert server.connections == 1
        evaluate_run(received, ["knn"], [f"tracking={block}"], Silent())
        assert server.connections == 2


def main_ok(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (None, 0)
