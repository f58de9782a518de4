"""Addresses of MLflow stores: logins are refused and never shown; paths mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sslkit.api import RunFacts
from sslkit.builtin import mlflow_store
from sslkit.builtin.mlflow_tracker import MLflowTracker
from sslkit.builtin.mlflow_uri import (
    login_of_environment,
    resolve_uri,
    sqlite_path,
    sqlite_uri,
    uri_problem,
)
from sslkit.errors import RecipeError, hide_logins
from sslkit.recipe import load_recipe
from sslkit.workflows.doctor import diagnose

FACTS = RunFacts(100, 1, (8, 8), 10, 10, 10, 100)
SECRET = "s3cr3tpw"  # noqa: S105
WITH_LOGIN = [
    f"http://user:{SECRET}@127.0.0.1:5123",
    f"http://{SECRET}@host:5000",
    f"HTTPS://user:{SECRET}@host/path",
    f"http://user:{SECRET}/more@host",
    f"http://user:{SECRET} and more@host",
    f"http://user%3A{SECRET}%40host:5000",
    f"http://host:5000/?token={SECRET}",
    f"http://host:5000/#access_token={SECRET}",
    f"postgresql://user:{SECRET}@host/db",
    f"postgresql+psycopg2://user:{SECRET}%40x@host:5432/db",
    f"postgresql://host/db?user=u&password={SECRET}",
    f"postgresql://host/db?p%61ssword={SECRET}",
    f"mysql+pymysql://user:{SECRET}@host/db",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
    f"databricks://token:{SECRET}@host",
    f"ftp://user:{SECRET}@host",
    f"http://{'u' * 80}:{SECRET}@host",
]


@pytest.mark.parametrize("uri", WITH_LOGIN)
def test_a_login_in_a_recipe_is_refused_and_not_shown(uri: str, tiny: Path) -> None:
    """In the file, by an override, in a misspelt field and in the wrong place."""
    with pytest.raises(ValidationError):
        MLflowTracker.Config(tracking_uri=uri)
    text = tiny.read_text()
    block = "tracking: {name: mlflow, tracking_uri: %s}"
    tiny.write_text(text.replace("tracking: {name: none}", block % json.dumps(uri)))
    messages = []
    for overrides in ((), (f"tracking.tracking_url={json.dumps(uri)}",)):
        with pytest.raises(RecipeError) as caught:
            load_recipe(tiny, overrides)
        messages.append(str(caught.value))
    tiny.write_text(text)
    for override in (
        f"tracking={{name: mlflow, tracking_uri: {json.dumps(uri)}}}",
        f"tracking={json.dumps(uri)}",
        f"train.epochs={json.dumps(uri)}",
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(tiny, [override])
        messages.append(str(caught.value))
    assert "tracking_uri" in messages[0]
    assert SECRET not in " ".join(messages)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://mlflow.example.org/a/b/",
        "http://[::1]:5000",
        "databricks",
        "databricks://profile",
        "postgresql+psycopg2://host:5432/db?sslmode=require",
        "sqlite:////data/me@work/mlflow.db",
    ],
)
def test_addresses_without_login_are_taken(uri: str) -> None:
    assert MLflowTracker.Config(tracking_uri=uri).tracking_uri == uri
    assert hide_logins(f"at {uri}: no") == f"at {uri.replace('sslmode=require', '***')}: no"


def test_login_of_the_environment_goes_to_the_client_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}%2F@127.0.0.1:9/")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    tracker = MLflowTracker(MLflowTracker.Config())
    assert not list(MLflowTracker.problems(tracker.config, FACTS))
    assert tracker.uri == "http://127.0.0.1:9"
    assert tracker.named_store() is None
    assert login_of_environment() == {
        "MLFLOW_TRACKING_USERNAME": "user",
        "MLFLOW_TRACKING_PASSWORD": f"{SECRET}/",
    }
    with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9: "):
        mlflow_store.probe(tracker.uri)
    assert SECRET not in json.dumps(diagnose().to_json())
    assert SECRET not in " ".join(tracker.ui_command("127.0.0.1", 5000) or ())


def test_login_of_a_database_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://user:{SECRET}@127.0.0.1:9/db")
    tracker = MLflowTracker(MLflowTracker.Config())
    assert not list(MLflowTracker.problems(tracker.config, FACTS))
    assert tracker.named_store() is None
    assert SECRET not in " ".join(tracker.ui_command("127.0.0.1", 5000) or ())
    assert SECRET not in json.dumps(diagnose().to_json())


@pytest.mark.parametrize("uri", [f"http://{SECRET}@host", f"http://u:{SECRET}@h/?x=1", "ftp://x"])
def test_environment_that_names_no_store(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ((_, message),) = MLflowTracker.problems(MLflowTracker.Config(), FACTS)
    assert message.startswith("MLFLOW_TRACKING_URI: ")
    assert SECRET not in message


NAMES = ["a%20b", "what?", "a#b", "two words", 'it\'s "quoted"', "größe", "100%", "a&b=c;d", "%%3F"]


@pytest.mark.parametrize("name", NAMES)
def test_store_lies_where_it_says(
    name: str, tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store in a folder of any name, reached by MLflow itself, and nothing beside it."""
    import shutil

    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(migrated_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MLflowTracker(MLflowTracker.Config(experiment="x"))
    assert uri_problem(tracker.uri) is None
    assert sqlite_path(tracker.uri) == folder / "mlflow.db"
    assert resolve_uri(tracker.uri) == tracker.uri
    client = mlflow_store.client(tracker.uri)
    root = mlflow_store.artifact_root(tracker.uri, "x")
    run = client.create_run(client.create_experiment("x", artifact_location=root))
    (folder / "report.md").write_text("fine")
    client.log_artifact(run.info.run_id, str(folder / "report.md"))
    names = sorted(each.name for each in folder.iterdir())
    assert names == ["mlflow.db", "mlruns", "report.md"]
    assert next((folder / "mlruns").rglob("report.md")).read_text() == "fine"
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_question_marks_in_given_uris(tmp_path: Path) -> None:
    assert "%3F" in str(uri_problem("sqlite:///what?/mlflow.db"))
    assert sqlite_path("sqlite:////x/what%3F/a%20b.db") == Path("/x/what?/a b.db")
    assert sqlite_path(sqlite_uri(Path("/x/what?/a%b.db"))) == Path("/x/what?/a%b.db")


@pytest.mark.skipif(sys.platform == "win32", reason="names are not bytes there")
def test_folder_whose_name_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert "only characters of UTF-8" in str(uri_problem(sqlite_uri(folder / "mlflow.db")))


def test_pages_get_no_address_on_their_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlflow ui` takes the store from a variable, which `ps` does not show."""
    seen = {}
    from sslkit.builtin import mlflow_ui

    monkeypatch.setattr(os, "execv", lambda path, command: seen.update(command=command))
    monkeypatch.setattr(mlflow_ui.os, "environ", dict(os.environ))
    mlflow_ui.os.environ["MLFLOW_TRACKING_URI"] = f"postgresql://u:{SECRET}@h/db"
    monkeypatch.setattr(subprocess, "call", lambda command: 0)
    mlflow_ui.main("", "127.0.0.1", "5000", "x")
    assert SECRET not in " ".join(seen["command"])
    assert SECRET in mlflow_ui.os.environ["MLFLOW_BACKEND_STORE_URI"]
