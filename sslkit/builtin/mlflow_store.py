"""Where an MLflow store is, how to reach it, and what it accepts."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslkit.builtin.mlflow_uri import login_of_environment, resolve_uri, sqlite_path, sqlite_uri

MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
MAX_DIGEST = 36

_VIEW = "sslkit"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
"""The tag of an experiment by which MLflow's UI keeps a view that is shared by its address."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens an experiment on model training, not on language models."""
_LEVELS = 3
"""Levels of a metric's name: `eval/<evaluator>/<metric>`."""
_COLUMNS = ("train/loss", "perf/images_per_second")
_MAX_COLUMNS = 12

_PROBE_S = 3.0
_CREATION_S = 120.0

CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # sslkit says by itself, in one line, what failed
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to `--json`
    # Defaults of MLflow block for minutes; sslkit retries by itself, off the training thread.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}
"""Set before MLflow is imported, unless the user has set them."""


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where the files of an experiment go: beside a SQLite file; elsewhere the store knows."""
    path = sqlite_path(uri)
    if path is None:
        return None
    return (path.parent / "mlruns" / re.sub(r"[^\w.-]+", "-", experiment)).as_uri()


@contextmanager
def creation_lock(uri: str) -> Iterator[None]:
    """One process at a time may open a SQLite store: creating one takes seconds, and two that
    create it at once break it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_CREATION_S):
        yield


def client(uri: str) -> Any:
    """An `MlflowClient` that gives up soon and reports to nobody. Opens a database, and creates it
    where it is missing: hold `creation_lock`."""
    login = login_of_environment() if uri == resolve_uri(None) else {}
    for name, value in {**CLIENT_ENVIRONMENT, **login}.items():
        os.environ.setdefault(name, value)
    _quieten()
    path = sqlite_path(uri)
    if path is not None and not _is_there(path):
        _create(path)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _create(path: Path) -> None:
    """Makes a SQLite store in a folder beside its place, and puts it there when it is whole: nobody
    could open one again whose process was killed among MLflow's migrations, which take seconds."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = path.with_name(f".{path.name}.new")
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    folder.mkdir()
    try:
        made = SqlAlchemyStore(sqlite_uri(folder / path.name), (path.parent / "mlruns").as_uri())
        made.engine.dispose()
        if not _is_there(path):  # another program may have made it without our lock
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_there(path: Path) -> bool:
    """Whether a file holds anything: SQLite leaves an empty one where a program has only looked."""
    return path.exists() and path.stat().st_size > 0


def _quieten() -> None:
    """Keeps warnings and tracebacks of the libraries below off the terminal: what they raise is
    reported in one line. A level that the user has set stays."""
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
    for name in ("alembic", "sqlalchemy", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)


def probe(uri: str) -> None:
    """Raises OSError where the URI is a server and nobody answers within three seconds."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=_PROBE_S):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        return  # an answer: it may want the login, which MLflow's client sends
    except urllib.error.URLError as error:
        raise ConnectionError(f"{uri}: {error.reason}") from None


def page(server: str, experiment_id: str | None = None, *, columns: bool = False) -> str:
    """The address that opens the UI of a server on the runs of an experiment, or on the list of
    experiments; by default MLflow 3 opens on pages about language models. columns: whether the
    experiment has the tag `VIEW_TAG`, which chooses the columns."""
    where = "experiments" if experiment_id is None else f"experiments/{experiment_id}/runs"
    view = f"&viewStateShareKey={_VIEW}" if columns else ""
    return f"{server}/#/{where}?workflowType=machine_learning{view}"


def view_state(before: str | None, metrics: Iterable[str]) -> str:
    """The value of `VIEW_TAG`: columns for the scores among these metrics, after those that it has
    already. What the baselines reached, intervals and costs have no column."""
    try:
        columns = [str(each) for each in json.loads(before or "{}").get("selectedColumns", ())]
    except (ValueError, TypeError, AttributeError):
        columns = []
    scores = sorted(key for key in metrics if re.fullmatch(r"eval/[\w.-]+/[a-z]+\d*", key))
    others = [key for key in _COLUMNS if key in set(metrics)]
    columns = [each for each in columns if each not in map(_column, _COLUMNS)]
    new = [_column(key) for key in scores if _column(key) not in columns]
    columns = [*columns, *new][:_MAX_COLUMNS]
    return json.dumps({"selectedColumns": [*columns, *map(_column, others)]})


def _column(metric: str) -> str:
    return f"metrics.`{metric}`"


def metric_key(key: str) -> str:
    """The nearest key that MLflow accepts: `acc@1` becomes `acc_1`."""
    cleaned = re.sub(r"[^\w.\-/: ]", "_", key)
    parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "unnamed"


def chart_key(key: str) -> str:
    """The key of a metric: of at most three parts, the rest joined by spaces. MLflow calls a chart
    by the last part alone: `collapse/embedding_spread/z/0` would stand there as "0", in a section
    of its own, and is "z 0" in that of its metric."""
    *outer, last = metric_key(key).split("/", _LEVELS - 1)
    return "/".join([*outer, last.replace("/", " ")])


def note(markdown: str) -> str:
    """A report as the description of a run: without its title, which is the name of the run, and
    without pictures, which are files beside it; cut at a line."""
    lines = [line for line in markdown.splitlines() if not line.startswith(("# ", "!["))]
    text = "\n".join(lines).strip()
    return text if len(text) <= MAX_TAG_VALUE else text[:MAX_TAG_VALUE].rpartition("\n")[0]


def cut(value: object, limit: int) -> str:
    """The value as text that MLflow accepts."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
