"""A run at an MLflow tracking server, or in an SQLite file beside the run's folder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from nlvideo.runtime.folder_lock import lock_file
from nlvideo.training.background_log import LogRow
from nlvideo.training.run_status import FAILED, FINISHED, STOPPED
from nlvideo.training.tracked_run import keep_tracked_id, tracked_id
from nlvideo.weights.checkpoint_file import NEWEST_FILE

EXPERIMENT = "nlvideo"  # unless MLFLOW_EXPERIMENT_NAME names another
STORE_FILE, ARTIFACTS_FOLDER = "mlflow.db", "mlflow_artifacts"  # beside the run's folder, so that runs are compared
MAX_PARAM_LENGTH = 500  # what every server takes
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100
RUN_STATES = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}


class MlflowRun:
    """Logs to MLFLOW_TRACKING_URI, or else to an SQLite file that all runs of a folder share.

    Values that the server has already are not logged again: of the steps that a resumed run repeats, it keeps the
    first. Params cannot be changed either and stay those of the first start.

    Args:
        folder: of the run.
        config: as plain values, nested.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self._folder, self._params = folder.resolve(), dict(flat_params(config))
        self._store = os.environ.get("MLFLOW_TRACKING_URI")
        self._client: MlflowClient | None = None
        self._id = tracked_id(folder, "mlflow")
        self._logged: dict[str, int] = {}  # the last step of each metric that an earlier start logged

    def start(self) -> str:
        store = self._store or f"sqlite:///{self._folder.parent / STORE_FILE}"
        self._client = self._client or self._connect(store)
        run = self._find() or self._create()
        self._id = run.info.run_id
        keep_tracked_id(self._folder, "mlflow", self._id)
        missing = [Param(key, value) for key, value in self._params.items() if key not in run.data.params]
        for i in range(0, len(missing), PARAMS_PER_REQUEST):
            self._client.log_batch(self._id, params=missing[i : i + PARAMS_PER_REQUEST])
        return f"run {self._id}; " + (store if self._store else f"mlflow ui --backend-store-uri {store}")

    def _connect(self, store: str) -> MlflowClient:
        """Returns a client; the first one creates the SQLite file, which two runs must not do at the same time."""
        if self._store:
            return MlflowClient(store)
        with open(self._folder.parent / f".{STORE_FILE}.lock", "w") as lock:
            with suppress(OSError):  # a file system without locks
                lock_file(lock.fileno(), wait=True)
            return MlflowClient(store)

    def _find(self) -> Run | None:
        """Returns the run that an earlier start logged, None if there was none or it has been deleted."""
        assert self._client
        if self._id is None:
            return None
        try:
            run = self._client.get_run(self._id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(self._id, status="RUNNING")
        for key in run.data.metrics:
            self._logged[key] = max(metric.step for metric in self._client.get_metric_history(self._id, key))
        return run

    def _create(self) -> Run:
        assert self._client
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        if experiment:
            identity = experiment.experiment_id
        else:
            place = None if self._store else (self._folder.parent / ARTIFACTS_FOLDER).as_uri()
            identity = self._client.create_experiment(name, artifact_location=place)
        tags = {"checkpoint": str(self._folder / NEWEST_FILE)}
        return self._client.create_run(identity, run_name=self._folder.name, tags=tags)

    def send(self, rows: Sequence[LogRow]) -> None:
        assert self._client and self._id
        new = [
            Metric(key, value, int(row.time * 1000), row.step)
            for row in rows
            for key, value in row.values.items()
            if row.step > self._logged.get(key, -1)
        ]
        for i in range(0, len(new), METRICS_PER_REQUEST):
            self._client.log_batch(self._id, metrics=new[i : i + METRICS_PER_REQUEST])

    def finish(self, state: str, pictures: Sequence[Path]) -> str:
        assert self._client and self._id
        self._client.set_terminated(self._id, RUN_STATES[state])
        for path in pictures:  # last: a server may have its metrics here and its artifacts where nothing answers
            self._client.log_artifact(self._id, str(path))
        return ""


def flat_params(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key with dots, value as text) of a nested config, long values shortened."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat_params(value, f"{prefix}{key}.")
        else:
            text = str(value)
            yield f"{prefix}{key}", text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 3] + "..."
