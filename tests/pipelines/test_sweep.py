"""Sweeps as a user launches them: in processes of their own."""

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipelines.conftest import QUICK, per_image_table, runs_of
from tests.pipelines.launching import complete, finish, start

SWEEP = ["bits=FP,1", "attack=fgsm,jsma", "seed=0,1", "+training.steps_per_epoch=3", *QUICK]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
CELLS = 8


def test_parallel_sweep_on_a_cold_store(cold):
    client = MlflowClient(f"sqlite:///{cold / 'mlflow.db'}")
    errors = finish(start(cold, *SWEEP, *JOBLIB, MLFLOW_RUN_ID="0" * 32))
    assert f"{CELLS} cells done, 0 were complete, 0 failed" in errors
    runs = runs_of(client, "attack")
    assert len(complete(client)) == len(runs) == CELLS
    assert len(runs_of(client, "train")) == 2
    (parent,) = runs_of(client, "sweep")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert {run.data.tags["launched_by"] for run in runs} == {"0" * 32}
    labelled = {(r.data.params["bits"], r.data.params["attack"], r.data.params["seed"]) for r in runs}
    assert len(labelled) == CELLS

    before = complete(client)
    errors = finish(start(cold, *SWEEP, *JOBLIB))
    assert "nothing to do" in errors
    assert complete(client) == before

    fgsm = [r for r in runs if r.data.params["attack"] == "fgsm" and r.data.params["seed"] == "0"]
    attacked = [set(per_image_table(client, run)["index"]) for run in fgsm]
    assert attacked[0] & attacked[1]


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_sweep_is_finished_by_running_it_again(workspace, client, killed_after):
    process = start(workspace, *SWEEP)
    deadline = time.time() + 200
    while time.time() < deadline and process.poll() is None:
        if _complete_now(workspace) >= killed_after:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = complete(client)
    assert killed_after <= len(kept) < CELLS

    errors = finish(start(workspace, *SWEEP))
    assert f"{len(kept)} of them complete" in errors
    after = complete(client)
    assert len(after) == CELLS
    assert kept.items() <= after.items()
    assert len(runs_of(client, "train")) == 2
    assert {run.info.status for run in runs_of(client, "attack")} == {"FINISHED"}
    assert len(runs_of(client, "sweep")) == 1


def _complete_now(workspace: Path) -> int:
    return sum('"status": "done"' in path.read_text() for path in workspace.glob("outputs/sweeps/*/*.json"))


def test_a_failing_cell_does_not_stop_the_others(command, client, capsys, monkeypatch):
    import attacks.native
    from attacks.native import jsma

    def broken(model, x, y, *, theta, gamma, seed=0, targets=None):
        if seed == 1:
            raise RuntimeError("out of luck")
        return jsma(model, x, y, theta=theta, gamma=gamma, seed=seed, targets=targets)

    monkeypatch.setattr(attacks.native, "jsma", broken)
    assert command("attack", "-m", *SWEEP) == 1
    errors = capsys.readouterr().err
    assert "6 cells done, 0 were complete, 2 failed" in errors
    assert "failed: jsma on mnist_a FP, seed 1: out of luck" in errors
    failed = [run for run in runs_of(client, "attack") if run.info.status == "FAILED"]
    assert [run.data.tags["failure"] for run in failed] == ["out of luck"] * 2
    assert runs_of(client, "sweep")[0].info.status == "FAILED"

    monkeypatch.setattr(attacks.native, "jsma", jsma)
    assert command("attack", "-m", *SWEEP) == 0
    assert "2 cells done, 6 were complete, 0 failed" in capsys.readouterr().err
    assert len(complete(client)) == CELLS
    assert runs_of(client, "sweep")[0].info.status == "FINISHED"
