"""Everything that touches MLflow.

A run's `complete` tag is written last: a run without it never counts. Runs are written with explicit
ids through one client, so nothing depends on MLflow's process-wide active run. A store that is away is
found out within seconds, not after MLflow's seven retries.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import numpy as np
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
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from analysis import store
from analysis.store import absolute_uri
from pipelines import claims
from pipelines.claims import BusyError, Claim
from pipelines.environment import environment_tags
from pipelines.errors import InputError
from pipelines.results import Facts, Result, now_ms
from pipelines.settings import one_line

SERVER_TIMEOUT_S = 5
LAUNCHED_BY = "QNN_LAUNCHED_BY"
STORE_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException)
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
    """A tracking store and one of its experiments (a study).

    Attributes:
        away: why the store could not be reached when it was last tried, None where it could.
    """

    def __init__(
        self, uri: str, study: str, tags: Mapping[str, str] | None = None, artifacts: str = "mlartifacts"
    ) -> None:
        self.uri, self.study, self.tags, self._artifacts = absolute_uri(uri), study, tags or {}, artifacts
        self.away: str | None = None

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        study: str,
        artifacts: str,
        tags: Mapping[str, str] | None = None,
        may_be_away: bool = False,
    ) -> Tracker:
        """Connect, creating the database and the experiment if need be; safe for parallel starts.

        Args:
            study: name of the experiment.
            artifacts: where a new experiment of a file store keeps its artifacts.
            tags: what every run started through this tracker carries.
            may_be_away: go on without a store that cannot be reached.

        Raises:
            InputError: the server does not answer, or the file cannot be written.
        """
        tracker = cls(uri, study, tags, artifacts)
        try:
            tracker.connect()
        except InputError:
            if not may_be_away:
                raise
        return tracker

    def connect(self) -> None:
        """Find the study, or begin it.

        Raises:
            InputError: the store cannot be used, or the study was deleted.
        """
        try:
            self._connect()
        except InputError as error:
            self.away = str(error)
            raise
        self.away = None

    def _connect(self) -> None:
        _check_reachable(self.uri)
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(self.uri)
        try:
            with _alone_in(self.uri):
                experiment = self.client.get_experiment_by_name(self.study)
                if experiment is None:
                    self._begin_study()
        except (*STORE_ERRORS, OSError) as error:
            raise InputError(f"the tracking store {self.uri} cannot be used: {one_line(error)[:300]}") from error
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise InputError(f"study={self.study} was deleted in the tracking store: restore it or choose another")

    def _begin_study(self) -> None:
        place = Path(self._artifacts).absolute().as_uri() if self.uri.startswith(_SQLITE) else None
        try:
            self.client.create_experiment(self.study, artifact_location=place, tags=_OF_TRAINING)
        except MlflowException:
            if self.client.get_experiment_by_name(self.study) is None:  # else another machine was first
                raise

    @functools.cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @functools.cached_property
    def experiment_id(self) -> str:
        experiment = self.client.get_experiment_by_name(self.study)
        assert experiment is not None
        return str(experiment.experiment_id)

    def find_complete(self, fingerprint: str) -> Run | None:
        """The newest complete run of a fingerprint, in any study."""
        found = self._search(f"tags.fingerprint = '{fingerprint}' and tags.complete = 'true'", limit=1)
        return found[0] if found else None

    def find_result(self, facts: Facts) -> str | None:
        """The complete run that a result would double: any of its cell, or for a forced one its own."""
        own = f" and tags.result = '{facts.id}'" if facts.forced else ""
        found = self._search(f"tags.fingerprint = '{facts.fingerprint}' and tags.complete = 'true'{own}", limit=1)
        return str(found[0].info.run_id) if found else None

    def complete_fingerprints(self) -> set[str]:
        return complete_fingerprints(self.uri)

    def claimed_fingerprints(self) -> set[str]:
        """The cells that somebody works on now."""
        running = self._search("attributes.status = 'RUNNING'")
        return {run.data.tags["fingerprint"] for run in running if claims.holder(run) is not None}

    def find_sweep(self, fingerprint: str) -> Run | None:
        """The parent run of a sweep in this study."""
        condition = f"tags.fingerprint = '{fingerprint}' and tags.kind = 'sweep'"
        found = self.client.search_runs([self.experiment_id], condition, max_results=1)
        return found[0] if found else None

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

    def facts(
        self, name: str, *, kind: str, fingerprint: str, params: Mapping[str, Any], parent: str | None, note: str
    ) -> Facts:
        """What there is to say of a cell before it is run."""
        return Facts(
            id=uuid.uuid4().hex,
            uri=self.uri,
            study=self.study,
            name=name,
            fingerprint=fingerprint,
            parent=parent,
            forced=False,
            tags=self._tags(kind, note),
            params={key: str(value) for key, value in params.items()},
            started=now_ms(),
        )

    def _tags(self, kind: str, note: str) -> dict[str, str]:
        return {
            "kind": kind,
            "mlflow.note.content": note,
            "mlflow.source.name": f"pipelines.{kind}",
            **({"launched_by": os.environ[LAUNCHED_BY]} if LAUNCHED_BY in os.environ else {}),
            **git_tags(),
            **environment_tags(),
            **self.tags,
        }

    def claim(self, facts: Facts, *, void: Collection[str | None] = ()) -> Claim:
        """Begin the run of a cell, for this process alone; what dead processes left of the cell is deleted.

        Args:
            void: runs whose claims do not hold, whatever they say.

        Raises:
            BusyError: another process has claimed the cell, or has completed it since it was looked for.
        """
        self._others(facts, void)
        run_id = self.start(facts)
        claim = Claim(self.client, run_id)
        try:
            self._others(facts, void, mine=run_id)
            claim.hold()
            others = self._others(facts, void, mine=run_id, before=run_id)
            while any(held and claims.is_undecided(held) for _, held in others):
                time.sleep(0.1)
                others = self._others(facts, void, mine=run_id, before=run_id)
            for run, held in others:
                if held is None:
                    self.discard(run.info.run_id)
        except BaseException:
            claim.release()
            with suppress(Exception):
                self.client.delete_run(run_id)
            raise
        return claim

    def _others(
        self, facts: Facts, void: Collection[str | None], mine: str | None = None, before: str = "~"
    ) -> list[tuple[Run, dict[str, Any] | None]]:
        """The other unfinished runs of a cell with the claims that hold on them.

        Raises:
            BusyError: the cell is complete, or claimed firmly on a run whose id comes before `before`.
        """
        found = []
        for run in self._search(f"tags.fingerprint = '{facts.fingerprint}'"):
            run_id = run.info.run_id
            if run.data.tags.get("complete") == "true":
                if not facts.forced:
                    raise BusyError(facts.fingerprint, "nobody any more: it has been completed meanwhile")
            elif run_id != mine:
                held = None if run_id in void else claims.holder(run)
                if held and held["firm"] and run_id < before:
                    raise BusyError(facts.fingerprint, claims.who(held))
                found.append((run, held))
        return found

    def start(self, facts: Facts) -> str:
        """Create a run and return its id."""
        tags = {
            "fingerprint": facts.fingerprint,
            claims.CLAIM: claims.claim_tag(firm=False),
            **facts.tags,
            **({"mlflow.parentRunId": facts.parent} if facts.parent else {}),
        }
        run = self.client.create_run(self.experiment_id, start_time=facts.started, tags=tags, run_name=facts.name)
        listed = [Param(key, value) for key, value in facts.params.items()]
        for i in range(0, len(listed), 100):
            self.client.log_batch(run.info.run_id, params=listed[i : i + 100])
        return str(run.info.run_id)

    def log_points(self, run_id: str, points: Sequence[tuple[str, float, int, int]]) -> None:
        """Log metrics as key, value, time (ms since 1970), step; one that is there already is not doubled."""
        for i in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in points[i : i + 1000]])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        self.log_points(run_id, [(key, float(value), now_ms(), 0) for key, value in metrics.items()])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_folder(self, run_id: str, folder: Path) -> None:
        self.client.log_artifacts(run_id, str(folder))

    def log_result(self, run_id: str, result: Result) -> None:
        """Write all of a result to a run begun for it, and mark it as finished and, last of all, complete."""
        facts = result.facts
        source, model_id = self._source(facts)
        tags = {**facts.tags, "result": facts.id, **({"source_run_id": source} if source else {})}
        self.set_tags(run_id, tags)
        if facts.dataset is not None:
            self.client.log_inputs(
                run_id,
                datasets=[_dataset_input(facts.dataset)],
                models=[LoggedModelInput(model_id)] if model_id else None,
            )
        self.log_points(run_id, facts.metrics)
        self.log_folder(run_id, result.artifacts)
        for image, key, step in result.pictures():
            self.client.log_image(run_id, image, key=key, step=step, synchronous=True)
        if facts.model is not None:
            _log_model(run_id, result.artifacts / facts.model["folder"], facts.model)
        self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED), end_time=facts.ended)
        self.client.set_tag(run_id, "complete", "true")

    def _source(self, facts: Facts) -> tuple[str | None, str | None]:
        """The run that the cell took its network or examples from, and the MLflow model it logged."""
        fingerprint, run_id = facts.source
        if fingerprint and not run_id:
            found = self.find_complete(fingerprint)
            run_id = found.info.run_id if found else ""
        if not run_id:
            return None, None
        outputs = self.client.get_run(run_id).outputs
        return run_id, outputs.model_outputs[0].model_id if outputs and outputs.model_outputs else None

    def is_active(self, run_id: str) -> bool:
        return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")

    def discard(self, run_id: str) -> None:
        """Delete an unfinished run, and the MLflow models it logged."""
        run = self.client.get_run(run_id)
        models = self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        for model in models:
            self.client.delete_logged_model(model.model_id)
        if run.info.lifecycle_stage == "active":
            self.client.delete_run(run_id)

    def fail(self, run_id: str, error: BaseException) -> None:
        """Let a run say why it ended before it was done."""
        if isinstance(error, KeyboardInterrupt):
            self.end(run_id, RunStatus.KILLED, "interrupted")
        else:
            self.end(run_id, RunStatus.FAILED, one_line(error) or type(error).__name__)

    def end(self, run_id: str, status: int, failure: str = "") -> None:
        """End a run, with the reason if it was not finished."""
        if failure:
            self.client.set_tag(run_id, "failure", failure[:4000])
        self.client.set_terminated(run_id, RunStatus.to_string(status))

    def reopen(self, run: Run) -> None:
        """Let an ended run go on."""
        if "failure" in run.data.tags:
            self.client.delete_tag(run.info.run_id, "failure")
        self.client.update_run(run.info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))

    def bury(self) -> None:
        """Let the runs of processes that are gone no longer look as if they were running."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if claims.read(run) is not None and claims.holder(run) is None:
                self.end(run.info.run_id, RunStatus.KILLED, "its process ended before it did")

    def download(self, run_id: str, artifact_path: str, keep_in: Path) -> Path:
        """An artifact on this machine: the store's own where that lies here, else a copy kept in `keep_in`.

        Raises:
            InputError: the run has no such artifact, or it cannot be fetched.
        """
        final = keep_in / artifact_path
        if final.exists():
            return final
        try:
            with store.artifact(self.uri, run_id, artifact_path, scratch=keep_in) as found:
                if not found.is_relative_to(keep_in):
                    return found
                final.parent.mkdir(parents=True, exist_ok=True)
                with suppress(OSError):  # another job was first
                    found.rename(final)
        except store.ArtifactError as error:
            raise InputError(one_line(error)[:300]) from error
        return final


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


def _dataset_input(described: Mapping[str, str]) -> DatasetInput:
    name = described["name"]
    dataset = Dataset(
        name, described["digest"], "local", json.dumps({"name": name}), described["schema"], described["profile"]
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", described["context"])])


def _log_model(run_id: str, stored: Path, form: Mapping[str, Any]) -> None:
    images = TensorSpec(np.dtype("float32"), (-1, *form["image"]))
    logits = TensorSpec(np.dtype("float32"), (-1, form["classes"]))
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"network": str(stored)},
            signature=ModelSignature(Schema([images]), Schema([logits])),
            pip_requirements=["torch", "safetensors", "numpy"],
            metadata={"network": form["network"]},
        )


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


def _alone_in(uri: str) -> AbstractContextManager:
    """Keeps others out of a database file: MLflow makes its tables in steps that only one process may take."""
    return FileLock(f"{uri.removeprefix(_SQLITE)}.lock") if uri.startswith(_SQLITE) else nullcontext()


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
