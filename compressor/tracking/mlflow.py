"""A run in MLflow. The tracking URI is always given; one that is a file or a database needs no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compressor.errors import MissingExtra, RunError
from compressor.tracking.content import Content

LONGEST = 6000  # characters of a parameter that MLflow takes
SQLITE = "sqlite:///"
BATCH = 100  # parameters and tags of one request


def write(content: Content, uri: str, experiment: str) -> str:
    """Log a run; rows are steps. Returns the id of the MLflow run.

    Raises:
        MissingExtra: mlflow is not installed.
        RunError: MLflow does not take it; a run that was begun is marked as failed.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # which MLflow sends by itself, and reads when it is imported
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtra("mlflow", "mlflow", "Tracking in MLflow") from error
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment, _files_of(uri))
        run = client.create_run(number, run_name=content.name).info.run_id
        try:
            _log(client, run, content)
        except BaseException:
            client.set_terminated(run, "FAILED")
            raise
        client.set_terminated(run)
    except MlflowException as error:
        raise RunError(f"MLflow at {uri} does not take the run: {str(error).splitlines()[0]}") from error
    return str(run)


def _files_of(uri: str) -> str | None:
    """Where files go: beside a local database, which MLflow would put into the working folder; else where it says."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()


def _log(client: Any, run: str, content: Content) -> None:
    import time

    from mlflow.entities import Metric, Param, RunTag

    parameters = [Param(key, str(value)[:LONGEST]) for key, value in content.parameters.items()]
    tags = [RunTag(key, value) for key, value in content.tags.items()]
    tags += [RunTag(f"row.{step}", name) for step, (name, _) in enumerate(content.rows)]
    for start in range(0, len(parameters), BATCH):
        client.log_batch(run, params=parameters[start : start + BATCH])
    for start in range(0, len(tags), BATCH):
        client.log_batch(run, tags=tags[start : start + BATCH])
    now = int(1000 * time.time())
    for step, (_, values) in enumerate(content.rows):
        client.log_batch(run, metrics=[Metric(key, value, now, step) for key, value in values.items()])
    for file in content.files:
        client.log_artifact(run, str(file))
