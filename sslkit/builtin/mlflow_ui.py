"""Shows an MLflow store: `python -m sslkit.builtin.mlflow_ui URI HOST PORT EXPERIMENT`; an empty
URI: the default one.

What `mlflow ui` does, without telemetry and job workers, and with the store created under the lock
that runs use."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from sslkit.builtin import mlflow_store as store
from sslkit.builtin.mlflow_uri import resolve_uri, sqlite_path

SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 10
}


HINT = (
    "MLflow begins with pages about language models: choose 'Model training' at the top left once, "
    "and the browser remembers it"
)


def main(uri: str, host: str, port: str, experiment: str) -> int:
    """Runs the server until it is stopped; returns its exit code."""
    uri, shown, columns = uri or resolve_uri(None), None, False
    if sqlite_path(uri) is not None:
        with store.creation_lock(uri):
            client = store.client(uri)
            shown = experiment_to_show(client, experiment)
            columns = shown is not None and store.VIEW_TAG in client.get_experiment(shown).tags
    command = [sys.executable, "-P", "-m", "mlflow", "ui"]
    command += ["--host", host, "--port", port, "--workers", "1"]
    os.environ.update(SERVER_ENVIRONMENT, MLFLOW_BACKEND_STORE_URI=uri)
    address = store.page(f"http://{host}:{port}", shown, columns=columns)
    print(f"open {address}\n{HINT}", flush=True)
    if os.name == "posix":
        os.execv(sys.executable, command)  # noqa: S606  (signals reach the server itself)
    return subprocess.call(command)


def experiment_to_show(client: Any, name: str) -> str | None:
    """The id of the experiment with this name, else of the one with the newest run, else None."""
    named = client.get_experiment_by_name(name)
    if named is not None and named.lifecycle_stage == "active":
        return str(named.experiment_id)
    every = [found.experiment_id for found in client.search_experiments()]
    newest = client.search_runs(every, order_by=["attributes.start_time DESC"], max_results=1)
    return str(newest[0].info.experiment_id) if newest else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
