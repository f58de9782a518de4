"""The tracker `mlflow`: one MLflow run for each run folder.

MLflow is imported when a run starts, on the thread that feeds the tracker, and used through
`MlflowClient` alone: no active run, no global tracking URI.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sslkit.api import ComponentConfig, MetricPoint, RunFacts, RunFiles, RunView, Tracker
from sslkit.builtin import mlflow_store as store
from sslkit.builtin.mlflow_uri import resolve_uri, uri_problem
from sslkit.environment_variables import MLFLOW_TRACKING_URI
from sslkit.errors import TrackingError
from sslkit.files import read_json, read_text

_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_FOLDER_TAG = "sslkit.run_folder"
_GROUP_TAG = "sslkit.comparison"
_GROUP_KEY_TAG = "sslkit.comparison_key"


class MLflowTracker(Tracker):
    """Mirrors a run folder to MLflow."""

    class Config(ComponentConfig):
        experiment: str = Field(default="sslkit", min_length=1, max_length=500)
        """Name of the MLflow experiment; it is created where it does not exist."""
        tracking_uri: str | None = None
        """The store. By default `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working folder."""
        tags: dict[str, str] = Field(default_factory=dict)
        """Further tags of the run."""
        parent_run_id: str | None = None
        """MLflow's id of the run under which this one is shown."""
        log_encoder: bool = False
        """Also uploads the weights of the encoder."""

        @field_validator("tracking_uri")
        @classmethod
        def _is_a_store(cls, uri: str | None) -> str | None:
            problem = None if uri is None else uri_problem(uri)
            if problem is not None:
                raise ValueError(problem)
            return uri

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: MLflowTracker.Config = config
        self.uri = resolve_uri(config.tracking_uri)
        self._client: Any = None
        self._run_id = ""
        self._received: Mapping[str, tuple[int, int]] = {}
        self._last_time_ms = 0

    @classmethod
    def problems(cls, config: Config, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if importlib.util.find_spec("mlflow") is None:
            yield "name", "mlflow is not installed; install it, or use tracking: {name: none}"
        if config.tracking_uri is None:
            given = MLFLOW_TRACKING_URI.text()
            problem = uri_problem(given or resolve_uri(None), of_environment=True)
            if problem is not None:
                yield "tracking_uri", f"{MLFLOW_TRACKING_URI.name + ': ' if given else ''}{problem}"

    def named_store(self) -> str | None:
        return self.uri if self.uri != resolve_uri(None) else None

    def ui_command(self, host: str, port: int) -> list[str]:
        """The command that shows the store in a browser."""
        if self.uri.startswith(("http://", "https://")):
            return [sys.executable, "-P", "-m", "webbrowser", store.page(self.uri)]
        # A login may stand in the environment's URI: no other process may read it in our command.
        arguments = [self.named_store() or "", host, str(port), self.config.experiment]
        return [sys.executable, "-P", "-m", "sslkit.builtin.mlflow_ui", *arguments]

    def start(self, run: RunView, run_id: str | None) -> str:
        """Opens or continues the run. Also called after a failure: it finds out what the service
        has, so that a batch whose answer was lost is not stored twice."""
        store.probe(self.uri)
        with store.creation_lock(self.uri):
            self._client = store.client(self.uri)
            experiment_id = self._experiment()
        found = self._find(experiment_id, run, run_id) or self._create(experiment_id, run)
        self._run_id = str(found.info.run_id)
        latest = found.data.to_proto().metrics
        self._received = {metric.key: (metric.step, metric.timestamp) for metric in latest}
        self._last_time_ms = max((metric.timestamp for metric in latest), default=0)
        self._describe(run, found)
        return self._run_id

    def log_metrics(self, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(store.chart_key(point.key), point.value, point.time_ms, point.step)
            for point in points
        ]
        new = [metric for metric in metrics if self._is_new(metric)]
        for part in _parts(new, _METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=part)
        self._last_time_ms = max((point.time_ms for point in points), default=self._last_time_ms)

    def log_artifact(self, path: Path, folder: str) -> None:
        files = RunFiles(path.parent)
        if path == files.encoder and not self.config.log_encoder:
            return
        self._client.log_artifact(self._run_id, str(path), folder or None)
        if path == files.report and not folder:  # shown as the description of the run
            self._client.set_tag(self._run_id, "mlflow.note.content", store.note(read_text(path)))

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        # The last metric's time: a run that is synchronised days later did not take days.
        end = self._last_time_ms or time.time_ns() // 1_000_000
        self._client.set_terminated(self._run_id, _STATUS[status], end)
        self._show_columns()

    def stored_points(self) -> list[MetricPoint]:
        keys = self._client.get_run(self._run_id).data.metrics
        return [
            MetricPoint(metric.key, metric.value, metric.step, metric.timestamp)
            for key in keys
            for metric in self._client.get_metric_history(self._run_id, key)
        ]

    def _show_columns(self) -> None:
        """Puts the run's scores into the list of runs: MLflow shows no metrics by itself."""
        run = self._client.get_run(self._run_id)
        experiment = self._client.get_experiment(run.info.experiment_id)
        before = experiment.tags.get(store.VIEW_TAG)
        state = store.view_state(before, run.data.metrics)
        if state != before:
            self._client.set_experiment_tag(run.info.experiment_id, store.VIEW_TAG, state)

    # --- Groups ----------------------------------------------------------------------------------

    def open_group(self, key: str, name: str) -> dict[str, Any]:
        """A parent run, tagged by `key`; its runs carry `sslkit.comparison`, to be searched by."""
        parent = self._open_parent(key, name)
        return {
            "parent_run_id": str(parent.info.run_id),
            "tags": {**self.config.tags, _GROUP_TAG: name},
        }

    def close_group(self, key: str, artifacts: Sequence[Path]) -> None:
        """Uploads the files; a Markdown file among them is the description of the parent run."""
        parent = self._open_parent(key, key).info
        run_id = str(parent.run_id)
        for path in artifacts:
            self._client.log_artifact(run_id, str(path), None)
            if path.suffix == ".md":
                note = store.note(read_text(path))
                self._client.set_tag(run_id, "mlflow.note.content", note)
        # Shown again days later, a comparison did not take days.
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        runs = self._client.search_runs([parent.experiment_id], below)
        ends = [run.info.end_time for run in runs if run.info.end_time is not None]
        self._client.set_terminated(run_id, end_time=max(ends, default=None))

    def _open_parent(self, key: str, name: str) -> Any:
        store.probe(self.uri)
        with store.creation_lock(self.uri):
            self._client = store.client(self.uri)
            experiment_id = self._experiment()
        found = self._client.search_runs(
            [experiment_id], f"tags.`{_GROUP_KEY_TAG}` = '{key}'", max_results=1
        )
        if found:
            return found[0]
        tags = {**_origin(), _GROUP_TAG: name, _GROUP_KEY_TAG: key, **self.config.tags}
        if self.config.parent_run_id is not None:
            tags["mlflow.parentRunId"] = self.config.parent_run_id
        return self._client.create_run(experiment_id, tags=tags, run_name=name)

    # --- Runs ------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        """The id of the experiment, created if need be."""
        from mlflow.exceptions import MlflowException

        name = self.config.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                root = store.artifact_root(self.uri, name)
                made = self._client.create_experiment(name, root, store.EXPERIMENT_TAGS)
                return str(made)
            except MlflowException as error:
                found = self._client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise error
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking.experiment: '{name}' was deleted in MLflow; choose another name, or "
                f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    def _find(self, experiment_id: str, run: RunView, run_id: str | None) -> Any:
        """The run that already mirrors this folder; None where there is none (any more)."""
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                found = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if found.info.lifecycle_stage == "active":
                    return found
        # A process may have died between creating the run and noting its id.
        tagged = f"tags.`{_FOLDER_TAG}` = '{run.run_dir.name}'"
        return next(iter(self._client.search_runs([experiment_id], tagged, max_results=1)), None)

    def _create(self, experiment_id: str, run: RunView) -> Any:
        recipe = run.files.recipe
        began = recipe.stat().st_mtime if recipe.exists() else time.time()
        return self._client.create_run(
            experiment_id, int(began * 1000), tags=self._tags(run), run_name=run.run_name
        )

    def _tags(self, run: RunView) -> dict[str, str]:
        tags = {
            **_origin(),
            _FOLDER_TAG: run.run_dir.name,
            **run.tags,
            **self.config.tags,
        }
        if self.config.parent_run_id is not None:
            tags["mlflow.parentRunId"] = self.config.parent_run_id
        return {
            store.metric_key(key): store.cut(value, store.MAX_TAG_VALUE)
            for key, value in tags.items()
        }

    def _describe(self, run: RunView, found: Any) -> None:
        """Params, tags, data set and status, as far as the service does not have them: MLflow
        refuses to change a param, and a resume may differ in paths."""
        from mlflow.entities import Param, RunTag

        params = [
            Param(store.metric_key(key), store.cut(value, store.MAX_PARAM_VALUE))
            for key, value in run.params.items()
        ]
        missing = [param for param in params if param.key not in found.data.params]
        for part in _parts(missing, _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=part)
        tags = [
            RunTag(key, value)
            for key, value in self._tags(run).items()
            if found.data.tags.get(key) != value
        ]
        if tags:
            self._client.log_batch(self._run_id, tags=tags)
        if not (found.inputs and found.inputs.dataset_inputs):
            inputs = _dataset_inputs(run)
            if inputs:
                self._client.log_inputs(self._run_id, inputs)
        if found.info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")

    def _is_new(self, metric: Any) -> bool:
        if metric.key not in self._received:
            return True
        step, time_ms = self._received[metric.key]
        return bool(
            metric.timestamp > time_ms if metric.key.startswith("system/") else metric.step > step
        )


def _dataset_inputs(run: RunView) -> list[Any]:
    """The splits of the data set, from `environment.json` and the recipe."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    environment = run.files.environment
    if not environment.exists():
        return []
    try:
        fingerprints = dict(read_json(environment, inside=run.run_dir)["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    block = {key[5:]: value for key, value in run.params.items() if key.startswith("data.")}
    return [
        DatasetInput(
            dataset=Dataset(
                name=str(block.get("name", "data")),
                digest=str(fingerprint)[: store.MAX_DIGEST],
                source_type="sslkit",
                source=json.dumps(block),
            ),
            tags=[InputTag("mlflow.data.context", split)],
        )
        for split, fingerprint in fingerprints.items()
    ]


def _origin() -> dict[str, str]:
    """Who ran what: the script, or sslkit where it runs by itself."""
    script = Path(sys.argv[0])
    own = Path(__file__).parents[1] in script.absolute().parents
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": "sslkit" if own else script.name or "python",
        "mlflow.source.type": "LOCAL",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"


def _parts(values: list[Any], size: int) -> Iterable[list[Any]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]
