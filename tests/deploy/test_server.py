"""Every pipeline on a server with a real PostgreSQL, unchanged."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from analysis.store import load_runs
from tests.deploy.conftest import clean_environment, serving
from tests.pipelines.conftest import QUICK, runs_of

pytestmark = pytest.mark.full
SHORT = [*QUICK, "+training.steps_per_epoch=3"]
PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def uri(enterable: Path) -> Iterator[str]:
    with serving(enterable) as address:
        yield address


@pytest.fixture(scope="module")
def run(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    folder = tmp_path_factory.mktemp("work")

    def run(module: str, *arguments: str, status: int = 0, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=clean_environment(MLFLOW_TRACKING_URI=uri, **variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert not (folder / "mlflow.db").exists()
        assert not (folder / "mlartifacts").exists()
        return done.stdout + done.stderr

    return run


def test_train_sweep_resume_evaluate_transfer_and_tables(run, uri, tmp_path):
    assert "0 failed" in run("pipelines.train", "-m", "bits=FP,1", *SHORT[:1], *SHORT[2:], *PARALLEL)
    sweep = ["-m", "bits=FP,1", "attack=fgsm,jsma", "seed=0,1", *SHORT, *PARALLEL]
    assert "8 cells done, 0 were complete, 0 failed" in run("pipelines.attack", *sweep)
    assert "nothing to do" in run("pipelines.attack", *sweep)

    client = MlflowClient(uri)
    attacks = runs_of(client, "attack")
    assert len(attacks) == 8
    assert len(runs_of(client, "train")) == 2
    artifact = attacks[0].info.artifact_uri
    assert artifact.startswith("mlflow-artifacts:/")
    assert Path(client.download_artifacts(attacks[0].info.run_id, "images.png", str(tmp_path))).stat().st_size > 1000

    evaluated = run("pipelines.evaluate", "bits=1", f"examples={attacks[0].info.run_id}", *SHORT[:1], *SHORT[2:])
    assert "adversarial accuracy" in evaluated
    transfer = ["-m", "bits=FP", "attack=fgsm", "targets.bits=[FP,1]", "count=3", *SHORT]
    assert "1 cells done" in run("pipelines.transfer", *transfer)
    assert "nothing to do" in run("pipelines.transfer", *transfer)

    assert "Table 6" in run("analysis.tables", "--out", str(tmp_path / "tables"))
    assert (tmp_path / "tables" / "cells.csv").read_text().count("\n") == 5
    assert len(load_runs("attack", uri)) == 8


def test_the_widths_of_a_network_are_compared(run, uri):
    widths = ["quantizer=uniform", "model.net.width=4", "defence.widths=[FP,2]", "compare=[FP,2]", *SHORT]
    patch = ["attack.max_iter=2", "attack.craft=attacked", "images=10", "stride=14"]
    for pipeline, more in (("alignment", ["n=40"]), ("sensitivity", patch)):
        run(f"pipelines.{pipeline}", *widths, *more)
        assert "already complete" in run(f"pipelines.{pipeline}", *widths, *more)
        assert len(runs_of(MlflowClient(uri), pipeline)) == 1


def test_nothing_but_the_server_itself_reaches_its_database(uri, enterable):
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    ours = (enterable / "postgres" / "postmaster.pid").read_text().split()[0]
    assert f"pid={ours}," not in listening
    assert (enterable / "postgres").stat().st_mode & 0o077 == 0


def test_users_and_passwords(enterable, tmp_path):
    state = enterable / "with-users"
    state.mkdir(mode=0o755)
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": "correct horse battery", "MLFLOW_FLASK_SERVER_SECRET_KEY": "staple"}
    command = [sys.executable, "-m", "pipelines.train", "bits=1", *SHORT[:1], *SHORT[2:]]
    with serving(state, "--app-name", "basic-auth", **secrets) as uri:
        stranger = clean_environment(MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        refused = subprocess.run(command, cwd=tmp_path, env=stranger, capture_output=True, text=True)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr
        user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "correct horse battery"}
        subprocess.run(command, cwd=tmp_path, env={**stranger, **user}, check=True, capture_output=True)
