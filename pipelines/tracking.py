"""Everything that touches MLflow.

A run's `complete` tag is written last: a run without it never counts. Runs are written with explicit
ids through one client, so nothing depends on MLflow's process-wide active run.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
import pandas as pd
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from analysis import store
from analysis.store import absolute_uri
from pipelines.environment import environment_tags
from pipelines.errors import InputError
from pipelines.settings import one_line
from qnn.data import ImageData

SERVER_TIMEOUT_S = 5
LAUNCHED_BY = "QNN_LAUNCHED_BY"
_SQLITE = "sqlite:///"
_OF_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # which of its two faces the UI shows


def detach_from_mlproject() -> None:
    """Take `mlflow run`'s run id out of the environment, where it would capture every job's run.

    The id stays available to `Tracker.start`, which notes it as the tag `launched_by`.
    """
    launched_by = os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
    if launched_by:
        os.environ[LAUNCHED_BY] = launched_by


class Tracker:
    """A tracking store and one of its experiments (a study)."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, tags: Mapping[str, str]) -> None:
        self.client, self.uri, self.experiment_id, self.tags = client, uri, experiment_id, tags

    @classmethod
    def open(
        cls, uri: str, *, study: str, artifacts: str, work: Path, tags: Mapping[str, str] | None = None
    ) -> Tracker:
        """Connect, creating the database and the experiment if need be; safe for parallel starts.

        Args:
            study: name of the experiment.
            artifacts: where a new experiment of a file store keeps its artifacts.
            work: folder of the lock that parallel starts take.
            tags: what every run started through this tracker carries.

        Raises:
            InputError: the server does not answer, or the file cannot be written.
        """
        uri = absolute_uri(uri)
        _check_reachable(uri)
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(uri)
        try:
            with FileLock(work / "store.lock"):
                client = MlflowClient(uri)  # makes the database
                experiment = client.get_experiment_by_name(study)
                if experiment is None:
                    place = Path(artifacts).absolute().as_uri() if uri.startswith(_SQLITE) else None
                    experiment_id = client.create_experiment(study, artifact_location=place, tags=_OF_TRAINING)
                    return cls(client, uri, experiment_id, tags or {})
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise InputError(f"the tracking store {uri} cannot be used: {one_line(error)[:300]}") from error
        if experiment.lifecycle_stage == "deleted":
            raise InputError(f"study={study} was deleted in the tracking store: restore it or choose another name")
        return cls(client, uri, experiment.experiment_id, tags or {})

    def find_complete(self, fingerprint: str) -> Run | None:
        """The newest complete run of a fingerprint, in any study."""
        found = self._search(f"tags.fingerprint = '{fingerprint}' and tags.complete = 'true'", limit=1)
        return found[0] if found else None

    def complete_fingerprints(self) -> set[str]:
        return complete_fingerprints(self.uri)

    def find_sweep(self, fingerprint: str) -> str | None:
        """The parent run of a sweep in this study."""
        condition = f"tags.fingerprint = '{fingerprint}' and tags.kind = 'sweep'"
        found = self.client.search_runs([self.experiment_id], condition, max_results=1)
        return found[0].info.run_id if found else None

    def _search(self, condition: str, limit: int | None = None) -> list[Run]:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                experiments, condition, ViewType.ACTIVE_ONLY, max_results=limit or 1000, page_token=token
            )
            found += page
            token = page.token
            if not token or limit:
                return found

    @contextmanager
    def leaf(
        self,
        name: str,
        *,
        kind: str,
        fingerprint: str,
        params: Mapping[str, Any],
        parent: str | None,
        note: str,
        resume: bool = False,
    ) -> Iterator[str]:
        """A run, by its id: complete once the block has ended, failed with the reason if it raises.

        What killed or failed processes left of the cell is deleted first, or with `resume` taken over,
        so that the curves of a resumed training are whole. Only for the holder of the cell's lock.
        """
        left = [
            run
            for run in self._search(f"tags.fingerprint = '{fingerprint}'")
            if run.data.tags.get("complete") != "true"
        ]
        if resume and left:
            run_id = left[0].info.run_id
            self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            for run in left:
                self.client.delete_run(run.info.run_id)
            run_id = self.start(name, kind=kind, fingerprint=fingerprint, params=params, parent=parent, note=note)
        try:
            yield run_id
        except BaseException as error:
            with suppress(Exception):
                self.fail(run_id, one_line(error) or type(error).__name__)
            raise
        self.complete(run_id)

    def start(
        self, name: str, *, kind: str, fingerprint: str, params: Mapping[str, Any], parent: str | None, note: str
    ) -> str:
        """Create a run and return its id."""
        tags = {
            "kind": kind,
            "fingerprint": fingerprint,
            "mlflow.note.content": note,
            "mlflow.source.name": f"pipelines.{kind}",
            **({"mlflow.parentRunId": parent} if parent else {}),
            **({"launched_by": os.environ[LAUNCHED_BY]} if LAUNCHED_BY in os.environ else {}),
            **git_tags(),
            **environment_tags(),
            **self.tags,
        }
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        listed = [Param(key, str(value)) for key, value in params.items()]
        for i in range(0, len(listed), 100):
            self.client.log_batch(run.info.run_id, params=listed[i : i + 100])
        return str(run.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()])

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_inputs(self, run_id: str, data: ImageData, *, context: str, model_id: str | None = None) -> None:
        """Note the data set, with its digest, and the network the run works on."""
        sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
        schema = {"image": list(data.shape), "dtype": "uint8", "classes": list(data.class_names)}
        dataset = Dataset(
            data.name, data.digest, "local", json.dumps({"name": data.name}), json.dumps(schema), json.dumps(sizes)
        )
        self.client.log_inputs(
            run_id,
            datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])],
            models=[LoggedModelInput(model_id)] if model_id else None,
        )

    def model_id(self, run_id: str) -> str | None:
        """The MLflow model a training run logged."""
        outputs = self.client.get_run(run_id).outputs
        return outputs.model_outputs[0].model_id if outputs and outputs.model_outputs else None

    def log_folder(self, run_id: str, folder: Path, artifact_path: str | None = None) -> None:
        self.client.log_artifacts(run_id, str(folder), artifact_path)

    def log_table(self, run_id: str, table: pd.DataFrame, name: str) -> None:
        self.client.log_table(run_id, table, name)

    def log_image(self, run_id: str, image: np.ndarray, *, key: str, step: int) -> None:
        """An image (height, width, channels), uint8, for the UI's image view."""
        self.client.log_image(run_id, image, key=key, step=step, synchronous=True)

    def download(self, run_id: str, artifact_path: str) -> Path:
        return download(self.uri, run_id, artifact_path)

    def complete(self, run_id: str) -> None:
        """Mark a run as finished and, last of all, complete."""
        if "failure" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "failure")
        self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
        self.client.set_tag(run_id, "complete", "true")

    def fail(self, run_id: str, reason: str) -> None:
        self.client.set_tag(run_id, "failure", reason[:4000])
        self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))


def complete_fingerprints(uri: str) -> set[str]:
    """The fingerprints of all complete runs; none where there is no store yet, which is not made.

    Raises:
        InputError: the server does not answer, or the file is no tracking store.
    """
    uri = absolute_uri(uri)
    if not uri.startswith(_SQLITE):
        _check_reachable(uri)
    try:
        return store.complete_fingerprints(uri)
    except sqlite3.Error as error:
        raise InputError(f"the tracking store {uri} cannot be used ({error}): set tracking.uri") from error


def download(uri: str, run_id: str, artifact_path: str) -> Path:
    """A local folder with the artifact; the store's own files where they are on this machine.

    Raises:
        InputError: the run has no such artifact, or it cannot be fetched.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact_path, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id} has no artifact {artifact_path}: {one_line(error)[:200]}") from error


def _check_reachable(uri: str) -> None:
    if uri.startswith(("http://", "https://")):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S).raise_for_status()
        except requests.RequestException as error:
            raise InputError(
                f"the tracking server {uri} does not answer ({type(error).__name__}): start it,"
                " or unset MLFLOW_TRACKING_URI to use a local file"
            ) from error
    elif uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with sqlite3.connect(path, timeout=SERVER_TIMEOUT_S) as database:
                database.execute("pragma schema_version").fetchone()
            with open(path, "ab"):
                pass
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"the tracking store {path} cannot be used ({error}): set tracking.uri") from error


@functools.cache
def git_tags() -> dict[str, str]:
    """The commit of this checkout, and whether it has uncommitted changes; nothing outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git_dirty": str(changed).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted parameters.

    >>> flatten({"optimizer": {"lr": 0.1}}, "training.")
    {'training.optimizer.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
