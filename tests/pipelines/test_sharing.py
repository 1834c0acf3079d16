"""Two launchers of one sweep at once share the work."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import claims, processes
from pipelines.tracking import Tracker
from tests.pipelines.conftest import runs_of
from tests.pipelines.launching import Launcher, complete

SWEEP = (
    *("-m", "bits=FP,1", "attack=fgsm,jsma", "seed=0,1", "n=5", "tracking.image_rows=2"),
    *("training.epochs=4", "+training.steps_per_epoch=3", "trainer.threads=1", "trainer.accelerator=cpu"),
)
CELLS, NETWORKS = 8, 2


@pytest.mark.parametrize("folders", [("a", "a"), ("a", "b")], ids=["one folder", "two folders"])
def test_every_cell_is_computed_once_by_one_of_two_launchers(preloaded, workspace, client, folders):
    for folder in set(folders):
        (workspace / folder).mkdir()
    store = f"tracking.uri=sqlite:///{workspace / 'mlflow.db'}"
    other = Launcher()
    try:
        for launch in (preloaded, other):  # one that answers has imported everything: neither is ahead of the other
            launch(workspace, "attack=unknown", errors="ready.txt")
        with ThreadPoolExecutor(2) as both:
            ended = [
                both.submit(launch, workspace / folder, *SWEEP, store, errors=f"{number}.txt")
                for number, (launch, folder) in enumerate(zip((preloaded, other), folders, strict=True))
            ]
        said = [one.result()[1] for one in ended]
    finally:
        other.close()
    assert [one.result()[0] for one in ended] == [0, 0], said
    assert len(complete(client)) == len(runs_of(client, "attack")) == CELLS
    assert len(complete(client, "train")) == len(runs_of(client, "train")) == NETWORKS
    done = [sum("adversarial accuracy" in line for line in text.splitlines()) for text in said]
    assert sum(done) >= CELLS
    assert min(done) > 0, said
    assert {run.info.status for run in runs_of(client, "sweep")} == {"FINISHED"}


def contend(folder: Path, seconds: float) -> bool:
    """Whether this process gets the claim that others want at the same time, and keeps for a while."""
    tracker = Tracker.open(f"sqlite:///{folder / 'mlflow.db'}", study="s", artifacts="mlartifacts")
    facts = tracker.facts("cell", kind="attack", fingerprint="f" * 16, params={}, parent=None, note="")
    try:
        tracker.claim(facts)
    except claims.BusyError:
        return False
    time.sleep(seconds)
    return True


def open_from(folder: Path) -> str:
    folder.mkdir()
    os.chdir(folder)
    return Tracker.open(f"sqlite:///{folder.parent / 'mlflow.db'}", study="s", artifacts="mlartifacts").experiment_id


def test_a_store_that_is_not_there_yet_is_made_once_by_launches_from_several_folders(cold):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipelines.tracking"])
    meet = processes.Barrier(4).wait
    with ProcessPoolExecutor(4, mp_context=processes, initializer=meet) as pool:
        studies = list(pool.map(open_from, [cold / str(number) for number in range(4)]))
    assert len(set(studies)) == 1


def test_a_study_that_another_machine_begins_meanwhile_is_used(workspace, monkeypatch):
    first = Tracker.open("sqlite:///mlflow.db", study="s", artifacts="mlartifacts")
    second = Tracker(first.uri, "s")
    answers = iter([None])
    find = second.client.get_experiment_by_name
    monkeypatch.setattr(second.client, "get_experiment_by_name", lambda name: next(answers, find(name)))
    second.connect()
    assert second.experiment_id == first.experiment_id


def test_one_of_many_claimants_wins(workspace):
    Tracker.open("sqlite:///mlflow.db", study="s", artifacts="mlartifacts")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipelines.tracking"])
    with ProcessPoolExecutor(6, mp_context=processes) as pool:
        won = list(pool.map(contend, [workspace] * 12, [3.0] * 12))
    assert sum(won) == 1


def test_claims_of_dead_processes_and_old_claims_do_not_hold(workspace: Path, monkeypatch):
    tracker = Tracker.open("sqlite:///mlflow.db", study="s", artifacts="mlartifacts")
    facts = tracker.facts("cell", kind="attack", fingerprint="f" * 16, params={}, parent=None, note="")
    claim = tracker.claim(facts)
    client = MlflowClient(tracker.uri)
    with pytest.raises(claims.BusyError, match="in work by process"):
        tracker.claim(facts)
    with monkeypatch.context() as later:
        later.setattr(processes, "birth", lambda pid: "another start")
        tracker.bury()
        (run,) = runs_of(client, "attack")
        assert (run.info.run_id, run.info.status) == (claim.run_id, "KILLED")
        assert run.data.tags["failure"] == "its process ended before it did"
    claim = tracker.claim(facts)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(processes, "machine", lambda: "another")
        with pytest.raises(claims.BusyError):
            tracker.claim(facts)
        elsewhere.setattr(claims, "EXPIRES_S", 0)
        taken = tracker.claim(facts)
    assert [run.info.run_id for run in runs_of(client, "attack")] == [taken.run_id]
    claim.release()
    taken.release()
