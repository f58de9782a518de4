"""Shows an MLflow store: `python -m sslkit.builtin.mlflow_ui URI HOST PORT`.

What `mlflow ui` does, without telemetry and job workers, and with the store created under the lock
that runs use."""

from __future__ import annotations

import os
import subprocess
import sys

from sslkit.builtin import mlflow_store as store

SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 10
}


def main(uri: str, host: str, port: str) -> int:
    """Runs the server until it is stopped; returns its exit code."""
    path = store.sqlite_path(uri)
    with store.creation_lock(uri):
        if path is not None and not path.exists():
            store.client(uri)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", host, "--port", port, "--workers", "1"]
    os.environ.update(SERVER_ENVIRONMENT)
    print(f"open {store.page(f'http://{host}:{port}')}", flush=True)
    if os.name == "posix":
        os.execv(sys.executable, command)  # noqa: S606  (signals reach the server itself)
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
