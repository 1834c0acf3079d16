"""A tracking server that goes away in mid-sweep: results stay on disk, and are delivered once."""

import signal
import sys
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from pipelines import sync
from pipelines.results import FACTS
from tests.pipelines.conftest import runs_of
from tests.pipelines.launching import Server, complete

SWEEP = (
    *("-m", "bits=FP,1", "attack=fgsm", "seed=0,1", "n=5", "tracking.image_rows=2"),
    *("training.epochs=2", "+training.steps_per_epoch=3", "trainer.threads=1", "trainer.accelerator=cpu"),
)
CELLS, NETWORKS = 4, 2


@pytest.fixture
def server(workspace) -> Iterator[Server]:
    server = Server(workspace)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def deliver(monkeypatch):
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pipelines.sync", *arguments])
        return sync.main()

    return run


@pytest.mark.parametrize("away", ["killed", pytest.param("frozen", marks=pytest.mark.full)])
def test_what_a_server_missed_is_delivered_once(preloaded, workspace, server, deliver, capsys, away):
    def first_cell_is_done(_: int) -> bool:
        done = [path for path in workspace.glob("outputs/sweeps/*/*.json") if '"status": "done"' in path.read_text()]
        if done and server.process is not None:
            server.send(signal.SIGSTOP) if away == "frozen" else server.kill()
        return False

    sweep = (*SWEEP, f"tracking.uri={server.uri}")
    status, said = preloaded(workspace, *sweep, stop=first_cell_is_done)
    assert status == 1
    assert "1 cells done, 0 were complete, 0 failed, 3 done but kept on disk" in said
    assert "Traceback" not in said
    assert len(list(workspace.glob(f"outputs/results/*/{FACTS}"))) == 4  # one of them a training
    assert deliver() == 1
    assert "0 results delivered, 4 still kept" in capsys.readouterr().err

    server.send(signal.SIGCONT) if away == "frozen" else server.start()
    assert deliver() == 0
    assert "4 results delivered, 0 still kept" in capsys.readouterr().err
    client = MlflowClient(server.uri)
    trained = complete(client, "train")
    assert len(trained) == NETWORKS
    assert len(complete(client)) == CELLS
    for run in runs_of(client, "attack"):
        assert run.data.tags["source_run_id"] == trained[run.data.params["network"]]
        assert len(client.get_run(run.info.run_id).inputs.model_inputs) == 1
    (parent,) = runs_of(client, "sweep")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["cells_complete"] == CELLS
    assert not list((workspace / "outputs" / "results").iterdir())
    for kind, runs in (("train", NETWORKS), ("attack", CELLS)):
        assert len(runs_of(client, kind)) == runs
    for run in runs_of(client, "train"):
        assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 2
    status, said = preloaded(workspace, *sweep)
    assert status == 0
    assert "nothing to do" in said


def test_a_server_that_is_away_from_the_start_is_one_line(preloaded, workspace):
    status, said = preloaded(workspace, *SWEEP, "tracking.uri=http://127.0.0.1:9")
    assert status == 1
    assert "error: the tracking server http://127.0.0.1:9 does not answer" in said
    assert "Traceback" not in said


def test_what_was_delivered_and_only_half_removed_goes(workspace, deliver):
    results = workspace / "outputs" / "results"
    (results / "0123456789abcdef.delivered" / "artifacts").mkdir(parents=True)
    (results / "fedcba9876543210.partial" / "artifacts").mkdir(parents=True)
    assert deliver() == 0
    assert [left.name for left in results.iterdir()] == ["fedcba9876543210.partial"]
