"""Reading the tracking store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import pandas as pd
from mlflow import MlflowClient

_SQLITE = "sqlite:///"


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
    client = MlflowClient(uri or default_uri())
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    unknown = set(studies) - set(experiments.values())
    if unknown:
        raise LookupError(
            f"no study named {', '.join(sorted(unknown))} in {uri or default_uri()}: there are"
            f" {', '.join(sorted(experiments.values()))}"
        )
    wanted = [key for key, name in experiments.items() if not studies or name in studies]
    rows = []
    token = None
    while wanted:
        condition = f"tags.kind = '{kind}' and tags.complete = 'true'"
        page = client.search_runs(wanted, condition, max_results=5000, page_token=token, order_by=["start_time DESC"])
        for run in page:
            tags = run.data.tags
            rows.append(
                {
                    "run_id": run.info.run_id,
                    "study": experiments[run.info.experiment_id],
                    "started": run.info.start_time,
                    "fingerprint": tags["fingerprint"],
                    "parent": tags.get("mlflow.parentRunId", ""),
                    "commit": tags.get("mlflow.source.git.commit", ""),
                    **{name: tags.get(name, "") for name in ("hardware", "versions", "overrides", "experiment")},
                    **{f"params.{name}": value for name, value in run.data.params.items()},
                    **{f"metrics.{name}": value for name, value in run.data.metrics.items()},
                }
            )
        token = page.token
        if not token:
            break
    return pd.DataFrame(rows)
