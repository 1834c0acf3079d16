"""Reading the tracking store: an SQLite file by SQL, a server through MLflow.

MLflow makes an object of every parameter, metric and tag, which takes half a minute for 10,000 runs in a file.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import pandas as pd

_SQLITE = "sqlite:///"
_BUSY_TIMEOUT_S = 20
_PAGE = 5000

_COMPLETE = """FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)
    WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
    AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'complete' AND value = 'true')"""
_OF_KIND = f"SELECT run_uuid {_COMPLETE} AND tags.key = 'kind' AND tags.value = ?"


class ArtifactError(LookupError):
    """What a run keeps cannot be had."""


class NoArtifactError(ArtifactError):
    """The run does not keep what was asked for."""


@dataclass
class _Run:
    id: str
    study: str
    started: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the working directory (where `mlflow ui` looks too)."""
    return absolute_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def absolute_uri(uri: str) -> str:
    """Make an SQLite address independent of the working directory.

    >>> absolute_uri("sqlite:////tmp/runs.db")
    'sqlite:////tmp/runs.db'
    """
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return uri


def load_runs(kind: str, uri: str | None = None, studies: Sequence[str] = ()) -> pd.DataFrame:
    """Complete runs of a kind (``train``, ``attack``), one row each, newest first.

    Columns: `run_id`, `study`, `started` (ms since 1970), `fingerprint`, `parent` (a run id), `commit`, `hardware`,
    `versions`, `overrides` and `experiment` (how it was launched); parameters as ``params.NAME`` (text) and
    metrics as ``metrics.NAME`` (numbers).

    Raises:
        LookupError: the store has no such study.
    """
    uri = absolute_uri(uri or default_uri())
    runs = _from_file(uri, kind, studies) if uri.startswith(_SQLITE) else _from_server(uri, kind, studies)
    return pd.DataFrame(
        [
            {
                "run_id": run.id,
                "study": run.study,
                "started": run.started,
                "fingerprint": run.tags["fingerprint"],
                "parent": run.tags.get("mlflow.parentRunId", ""),
                "commit": run.tags.get("mlflow.source.git.commit", ""),
                **{name: run.tags.get(name, "") for name in ("hardware", "versions", "overrides", "experiment")},
                **{f"params.{name}": value for name, value in run.params.items()},
                **{f"metrics.{name}": value for name, value in run.metrics.items()},
            }
            for run in runs
        ]
    )


def complete_fingerprints(uri: str) -> set[str]:
    """The fingerprints of all complete runs, in any study."""
    if uri.startswith(_SQLITE):
        return {value for (value,) in _query(uri, f"SELECT tags.value {_COMPLETE} AND tags.key = 'fingerprint'")}
    runs = _search(uri, list(_studies_of_server(uri)), "tags.complete = 'true'")
    return {run.data.tags["fingerprint"] for run in runs}


@contextmanager
def artifact(uri: str, run_id: str, path: str, scratch: Path | None = None) -> Iterator[Path]:
    """A file or folder that a run keeps, on this machine while the block lasts.

    The store's own where that lies here, which is not to be changed; else a copy that is removed after the block.
    (`mlflow.artifacts.download_artifacts` copies every time, and leaves the copy.)

    Args:
        scratch: the folder to copy into, made if need be (default: the system's for temporary files).

    Raises:
        NoArtifactError: the run has no such artifact.
        ArtifactError: there is no such run, or the artifact cannot be fetched.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with ExitStack() as copies:
        try:
            repository = _repository(absolute_uri(uri), run_id)
            if path not in {listed.path for listed in repository.list_artifacts(path.rpartition("/")[0] or None)}:
                raise NoArtifactError(f"run {run_id} has no artifact {path}")
            into = None
            if not isinstance(repository, LocalArtifactRepository):
                if scratch is not None:
                    scratch.mkdir(parents=True, exist_ok=True)
                into = copies.enter_context(tempfile.TemporaryDirectory(dir=scratch))
            found = Path(repository.download_artifacts(path, into))
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"artifact {path} of run {run_id} cannot be fetched: {error}") from error
        yield found


@functools.lru_cache(maxsize=1024)
def _repository(uri: str, run_id: str) -> Any:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(MlflowClient(uri).get_run(run_id).info.artifact_uri, tracking_uri=uri)


def _from_file(uri: str, kind: str, studies: Sequence[str]) -> list[_Run]:
    names = [name for (name,) in _query(uri, "SELECT name FROM experiments WHERE lifecycle_stage = 'active'")]
    _check_known(studies, names, uri)
    columns = "runs.run_uuid, experiments.name, start_time FROM runs JOIN experiments USING (experiment_id)"
    listed = _query(uri, f"SELECT {columns} WHERE run_uuid IN ({_OF_KIND}) ORDER BY start_time DESC, run_uuid", kind)
    runs = {run_id: _Run(run_id, study, started) for run_id, study, started in listed if study in (studies or names)}
    for table, value in (("tags", "value"), ("params", "value"), ("latest_metrics", "IIF(is_nan, NULL, value)")):
        text = f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN ({_OF_KIND}) ORDER BY rowid"
        for run_id, key, entry in _query(uri, text, kind):
            if run_id in runs:
                getattr(runs[run_id], table.removeprefix("latest_"))[key] = float("nan") if entry is None else entry
    return list(runs.values())


def _query(uri: str, text: str, *values: str) -> list[tuple[Any, ...]]:
    """The rows of a query; none where there is no store yet.

    The file is opened for writing as well, where that is allowed, because SQLite itself has to take back what a
    killed process wrote last.
    """
    path = Path(uri.removeprefix(_SQLITE))
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)) as database:
        database.execute("PRAGMA query_only = ON")
        begun = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'latest_metrics'").fetchone()
        return database.execute(text, values).fetchall() if begun else []


def _from_server(uri: str, kind: str, studies: Sequence[str]) -> Iterator[_Run]:
    known = _studies_of_server(uri)
    _check_known(studies, known.values(), uri)
    wanted = [key for key, name in known.items() if not studies or name in studies]
    for run in _search(uri, wanted, f"tags.kind = '{kind}' and tags.complete = 'true'"):
        info, data = run.info, run.data
        yield _Run(info.run_id, known[info.experiment_id], info.start_time, data.tags, data.params, data.metrics)


def _studies_of_server(uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    return {experiment.experiment_id: experiment.name for experiment in MlflowClient(uri).search_experiments()}


def _search(uri: str, experiments: list[str], condition: str) -> Iterator[Any]:
    from mlflow import MlflowClient

    client, token = MlflowClient(uri), None
    while experiments:
        page = client.search_runs(
            experiments, condition, max_results=_PAGE, page_token=token, order_by=["start_time DESC"]
        )
        yield from page
        token = page.token
        if not token:
            break


def _check_known(studies: Sequence[str], known: Collection[str], uri: str) -> None:
    unknown = set(studies) - set(known)
    if unknown:
        raise LookupError(f"no study named {', '.join(sorted(unknown))} in {uri}: there are {', '.join(sorted(known))}")
