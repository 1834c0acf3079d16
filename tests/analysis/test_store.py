"""A file is read by SQL, a server through MLflow: both must say the same of the same store."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from analysis import store
from tests.pipelines.launching import Server

DIES_WHILE_WRITING = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")  # so that pages are written before the transaction ends
database.execute("UPDATE tags SET value = 'lost' || hex(zeroblob(3000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(uri)
    direct, other, gone = (client.create_experiment(name) for name in ("direct", "other", "gone"))

    def add(study: str, fingerprint: str, params: dict, metrics: list[Metric], **tags: str) -> str:
        started = int(fingerprint, 16)
        run = client.create_run(study, start_time=started, tags={"kind": "attack", "fingerprint": fingerprint, **tags})
        for name, value in params.items():
            client.log_param(run.info.run_id, name, value)
        client.log_batch(run.info.run_id, metrics=metrics)
        return run.info.run_id

    complete = {"complete": "true"}
    add(direct, "a1", {"bits": "1", "attack": "cw"}, [Metric("l2", 1.5, 1, 0), Metric("l2", 0.5, 2, 1)], **complete)
    add(direct, "a2", {"seed": "0", "bits": "FP"}, [Metric("l2", float("nan"), 1, 0)], hardware="abacus", **complete)
    add(other, "a3", {"bits": "2"}, [Metric("linf", float("inf"), 1, 0)], **complete)
    add(other, "a3", {"bits": "2"}, [], **complete)
    add(direct, "b1", {"bits": "1"}, [Metric("l2", 2.5, 1, 0)])
    add(direct, "b2", {"bits": "1"}, [], complete="false")
    client.delete_run(add(direct, "b3", {"bits": "1"}, [], **complete))
    add(gone, "b4", {"bits": "1"}, [], **complete)
    client.delete_experiment(gone)
    trained = client.create_run(direct, tags={"kind": "train", "fingerprint": "c1", **complete})
    client.log_param(trained.info.run_id, "model", "mnist_a")
    return uri


@pytest.mark.parametrize("kind", ["attack", "train", "transfer"])
@pytest.mark.parametrize("studies", [(), ("direct",), ("other", "direct")])
def test_a_file_and_a_server_give_the_same_frame(uri, kind, studies, monkeypatch):
    of_file = store.load_runs(kind, uri, studies)
    monkeypatch.setattr(store, "_from_file", store._from_server)
    pd.testing.assert_frame_equal(of_file, store.load_runs(kind, uri, studies))


def test_only_complete_runs_count_newest_first(uri):
    runs = store.load_runs("attack", uri)
    assert list(runs["fingerprint"]) == ["a3", "a3", "a2", "a1"]
    assert list(runs["study"]) == ["other", "other", "direct", "direct"]
    assert runs["metrics.l2"].iloc[-1] == 0.5
    assert runs.loc[runs["fingerprint"] == "a2", "metrics.l2"].isna().all()
    assert store.complete_fingerprints(uri) == {"a1", "a2", "a3", "c1"}


def test_complete_fingerprints_are_the_same_from_a_file_and_a_server(uri, monkeypatch):
    of_file = store.complete_fingerprints(uri)
    monkeypatch.setattr(store, "_SQLITE", "file:")
    assert store.complete_fingerprints(uri) == of_file


def test_pages_of_a_server_join_up(uri, monkeypatch):
    whole = store.load_runs("attack", uri)
    monkeypatch.setattr(store, "_from_file", store._from_server)
    monkeypatch.setattr(store, "_PAGE", 1)
    pd.testing.assert_frame_equal(store.load_runs("attack", uri), whole)


def test_an_unknown_study_is_named_with_those_there_are(uri, monkeypatch):
    for _ in range(2):
        with pytest.raises(LookupError, match=r"no study named dirct in .*: there are .*direct, other"):
            store.load_runs("attack", uri, ["dirct"])
        monkeypatch.setattr(store, "_from_file", store._from_server)


def test_a_store_that_is_not_there_yet_has_no_runs_and_is_not_made(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert store.load_runs("attack", uri).empty
    assert store.complete_fingerprints(uri) == set()
    assert not any(tmp_path.iterdir())


def test_a_store_whose_writer_was_killed_is_read_as_it_was_before(uri, tmp_path):
    path = tmp_path / "mlflow.db"
    shutil.copy(uri.removeprefix("sqlite:///"), path)
    before = store.complete_fingerprints(f"sqlite:///{path}")
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Path(f"{path}-journal").stat().st_size > 0
    assert store.complete_fingerprints(f"sqlite:///{path}") == before


def test_a_store_that_may_only_be_read_is_read(uri, tmp_path):
    path = tmp_path / "mlflow.db"
    shutil.copy(uri.removeprefix("sqlite:///"), path)
    path.chmod(0o444)
    before = path.read_bytes()
    assert store.complete_fingerprints(f"sqlite:///{path}") == store.complete_fingerprints(uri)
    assert path.read_bytes() == before


def test_a_store_that_is_just_being_made_has_no_runs(tmp_path):
    (tmp_path / "mlflow.db").touch()
    assert store.complete_fingerprints(f"sqlite:///{tmp_path / 'mlflow.db'}") == set()


def test_a_path_with_odd_characters_is_read(uri, tmp_path):
    odd = tmp_path / "50% of #1?.db"
    odd.write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
    assert len(store.load_runs("attack", f"sqlite:///{odd}")) == 4


@pytest.fixture(params=["file", "server"])
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A store with a run that keeps ``examples/note.txt``: its address and the run."""
    server = Server(tmp_path) if request.param == "server" else None
    if server is not None:
        server.start()
    uri = server.uri if server is not None else f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    kept = None if server is not None else (tmp_path / "kept").as_uri()
    run = client.create_run(client.create_experiment("direct", artifact_location=kept))
    client.log_text(run.info.run_id, "kept", "examples/note.txt")
    yield uri, run.info.run_id
    if server is not None:
        server.kill()


def test_reading_an_artifact_leaves_no_copy(keeping, tmp_path, monkeypatch):
    uri, run_id = keeping
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for path in ("examples", "examples/note.txt"):
        with store.artifact(uri, run_id, path) as found:
            assert (found / "note.txt" if path == "examples" else found).read_text() == "kept"
            assert found.is_relative_to(temporary) == uri.startswith("http")
        assert not list(temporary.iterdir())
        assert found.exists() == uri.startswith("sqlite")
    with pytest.raises(store.NoArtifactError, match=r"has no artifact examples/other\.txt"):
        store.artifact(uri, run_id, "examples/other.txt").__enter__()
    with pytest.raises(store.ArtifactError, match=f"artifact examples of run {'0' * 32} cannot be fetched"):
        store.artifact(uri, "0" * 32, "examples").__enter__()
    assert not list(temporary.iterdir())
