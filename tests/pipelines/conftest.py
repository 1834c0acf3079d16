import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.attack import TABLE
from pipelines.cli import launch

QUICK = ("training.epochs=1", "n=5", "trainer.threads=1", "trainer.accelerator=cpu")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with no tracking server configured."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "QNN_DATA", "QNN_SWEEP_FOLDER", "QNN_LAUNCHED_BY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def command(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a pipeline as from the command line, in this process; returns the exit status."""

    def run(pipeline: str, *overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"pipelines.{pipeline}", *overrides])
        return launch(pipeline)

    return run


@pytest.fixture
def client(workspace: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")


def runs_of(client: MlflowClient, kind: str) -> list:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.kind = '{kind}'"))


def per_image_table(client: MlflowClient, run) -> pd.DataFrame:
    return pd.read_json(client.download_artifacts(run.info.run_id, TABLE), orient="split")
