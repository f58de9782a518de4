"""A SQLite store is there whole or not at all, whenever the process that makes it is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sslkit.builtin import mlflow_store

MAKE = """
import sys
from sslkit.builtin import mlflow_store
with mlflow_store.creation_lock(sys.argv[1]):
    client = mlflow_store.client(sys.argv[1])
    client.create_experiment("e-" + sys.argv[2])
"""


def start(path: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKE, f"sqlite:///{path}", name])


def tables(path: Path) -> int:
    """How many a database has; 0 where it cannot be read yet."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute("select count(*) from sqlite_master where type = 'table'")
            return int(found.fetchone()[0])
    except sqlite3.Error:
        return 0


def experiments(path: Path) -> set[str]:
    uri = f"sqlite:///{path}"
    with mlflow_store.creation_lock(uri):
        return {each.name for each in mlflow_store.client(uri).search_experiments()}


@pytest.mark.slow  # 15 seconds
@pytest.mark.parametrize(
    "tables_made",
    [1, 6, 16, 23, 33, 42],  # 10 s each
)
def test_a_kill_in_the_migrations_leaves_no_store_behind(tmp_path: Path, tables_made: int) -> None:
    path = tmp_path / "mlflow.db"
    process = start(path, "first")
    made = tmp_path / ".mlflow.db.new" / "mlflow.db"
    while tables(made) < tables_made:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    assert start(path, "second").wait() == 0
    assert experiments(path) == {"Default", "e-second"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow  # two interpreters that import MLflow
def test_two_that_start_at_once_share_a_store(tmp_path: Path) -> None:
    """The empty file, which a look with SQLite leaves behind, is no store."""
    path = tmp_path / "mlflow.db"
    path.touch()
    both = [start(path, str(number)) for number in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert experiments(path) == {"Default", "e-0", "e-1"}


def test_a_store_that_another_program_has_made_meanwhile_is_kept(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"

    class Slow:
        def __init__(self, uri: str, root: str) -> None:
            self.engine = self
            os.link(migrated_store, path)

        def dispose(self) -> None:
            (tmp_path / ".mlflow.db.new" / "mlflow.db").touch()

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Slow)
    mlflow_store._create(path)
    assert path.samefile(migrated_store)
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]
