"""Where an MLflow store is, how to reach it, and what it accepts."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
MAX_DIGEST = 36

_PROBE_S = 3.0
_CREATION_S = 120.0

CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to `--json`
    # Defaults of MLflow block for minutes; sslkit retries by itself, off the training thread.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}
"""Set before MLflow is imported, unless the user has set them."""


def resolve_uri(tracking_uri: str | None) -> str:
    """The store: the given one, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working
    directory. Paths of SQLite files come out absolute: MLflow would take them from wherever the
    process happens to be."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    return f"sqlite:///{path.as_posix()}" if path is not None else uri.rstrip("/")


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the database file, None where the URI names no SQLite file."""
    head, separator, path = uri.partition(":///")
    if not separator or head.split("+")[0] != "sqlite" or not path:
        return None
    return Path(path).expanduser().absolute()


def uri_problem(uri: str) -> str | None:
    """Why no run can be tracked at this URI, None where it looks right."""
    scheme = uri.partition(":")[0].split("+")[0].lower()
    if scheme == "sqlite" and sqlite_path(uri) is None:
        return f"'{without_login(uri)}' names no file; write sqlite:///path/to/mlflow.db"
    if scheme in (*DATABASES, *SERVERS):
        return None
    others = ", ".join((*DATABASES[1:], *SERVERS[1:]))
    return (
        f"'{without_login(uri)}' is no MLflow store; valid are sqlite:///path/to/mlflow.db, "
        f"http://host:port and other URIs that start with {others}"
    )


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
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def probe(uri: str) -> None:
    """Raises OSError where the URI is a server and nobody answers within three seconds."""
    if not uri.startswith(("http://", "https://")):
        return
    public = without_login(uri)
    try:
        with urllib.request.urlopen(f"{public}/health", timeout=_PROBE_S):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        return  # an answer: it may want the login, which MLflow's client sends
    except urllib.error.URLError as error:
        raise ConnectionError(f"{public}: {error.reason}") from None


def without_login(uri: str) -> str:
    """The URI as it may stand in messages, without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def page(server: str, experiment_id: str | None = None) -> str:
    """The address that opens the UI of a server on the runs of an experiment, or on the list of
    experiments; by default MLflow 3 opens on pages about language models."""
    where = "experiments" if experiment_id is None else f"experiments/{experiment_id}/runs"
    return f"{without_login(server)}/#/{where}?workflowType=machine_learning"


def metric_key(key: str) -> str:
    """The nearest key that MLflow accepts: `acc@1` becomes `acc_1`."""
    cleaned = re.sub(r"[^\w.\-/: ]", "_", key)
    parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "unnamed"


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
