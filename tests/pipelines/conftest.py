import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.attack import TABLE
from pipelines.cli import launch
from tests.pipelines.launching import Launcher, runs_of

QUICK = ("training.epochs=1", "n=5", "trainer.threads=1", "trainer.accelerator=cpu")


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "QNN_DATA", "QNN_SWEEP_FOLDER", "QNN_LAUNCHED_BY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without runs; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with no tracking server configured."""
    enter(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def workspace(cold: Path, empty_store: Path) -> Path:
    """As `cold`, with a tracking store that holds nothing yet."""
    shutil.copy(empty_store, cold)
    return cold


@pytest.fixture
def command(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a pipeline as from the command line, in this process; returns the exit status."""

    def run(pipeline: str, *overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"pipelines.{pipeline}", *overrides])
        return launch(pipeline)

    return run


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Launcher]:
    """Launches pipelines in processes of their own, without the seconds that their imports take."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """A tracking store for the attacks of `attacked`."""
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('shared') / 'mlflow.db'}")


@pytest.fixture(scope="module")
def attacked(shared_store: MlflowClient) -> Callable[..., Run]:
    """Run an attack as from the command line, all in one store, so that the network is trained once."""
    folder = Path(shared_store.tracking_uri.removeprefix("sqlite:///")).parent

    def run(*overrides: str) -> Run:
        known = {run.info.run_id for run in runs_of(shared_store, "attack")}
        with pytest.MonkeyPatch.context() as monkeypatch:
            enter(folder, monkeypatch)
            monkeypatch.setattr(sys, "argv", ["pipelines.attack", *QUICK, *overrides])
            assert launch("attack") == 0
        (new,) = [run for run in runs_of(shared_store, "attack") if run.info.run_id not in known]
        return new

    return run


@pytest.fixture
def client(workspace: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")


def per_image_table(client: MlflowClient, run) -> pd.DataFrame:
    return pd.read_json(client.download_artifacts(run.info.run_id, TABLE), orient="split")
