"""Launching pipelines in processes of their own, and what is in a store afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import safe_open

_PRELOADED = """
import json, os, signal, sys
import mlflow.pyfunc, pytorch_lightning, sklearn.datasets, matplotlib.figure, sqlalchemy, alembic
from pipelines import attack, cli, sweep
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job["folder"])
        print(os.getpid(), flush=True)
        errors = os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 2)
        os.dup2(errors, 1)
        sys.argv = ["pipelines." + job["pipeline"], *job["overrides"]]
        os._exit(cli.launch(job["pipeline"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment(**more: str) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "QNN"))}
    return {**ours, "OMP_NUM_THREADS": "1", **more}


def start(workspace: Path, *overrides: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.attack", "-m", *overrides],
        cwd=workspace,
        env=environment(**variables),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return errors


def wait_for(condition: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 200) -> bool:
    """Whether a condition came true, before the process ended."""
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline or (process is not None and process.poll() is not None):
            return False
        time.sleep(0.005)
    return True


class Launcher:
    """Launches pipelines from a process that has imported everything already, each in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PRELOADED],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        folder: Path,
        *overrides: str,
        pipeline: str = "attack",
        errors: str = "errors.txt",
        stop: Callable[[int], bool] = lambda _: False,
        by: signal.Signals = signal.SIGKILL,
    ) -> tuple[int, str]:
        """The exit status (-9 if killed) and what was said; its process group is sent a signal once `stop` is true."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"folder": str(folder), "pipeline": pipeline, "overrides": overrides, "errors": errors}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        while Path(f"/proc/{child}").exists():
            if stop(child):
                os.killpg(child, by)
                break
            time.sleep(0.002)
        return int(self.process.stdout.readline()), (folder / errors).read_text()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Server:
    """A real MLflow server on an SQLite file and a folder of artifacts, that can be killed and started again."""

    def __init__(self, folder: Path, *, database: str = "server.db", artifacts: str = "served") -> None:
        self.database, self.artifacts = folder / database, folder / artifacts
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"),
                *("--artifacts-destination", str(self.artifacts)),
            ],
            env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert wait_for(self._answers, self.process)

    def send(self, by: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, by)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            return bool(requests.get(f"{self.uri}/health", timeout=2).ok)
        except requests.RequestException:
            return False


def runs_of(client: MlflowClient, kind: str) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.kind = '{kind}'"))


def complete(client: MlflowClient, kind: str = "attack") -> dict[str, str]:
    """Run ids by fingerprint; a fingerprint that is complete twice fails the test."""
    runs = [run for run in runs_of(client, kind) if run.data.tags.get("complete") == "true"]
    found = {run.data.tags["fingerprint"]: run.info.run_id for run in runs}
    assert len(found) == len(runs)
    return found


def contents(client: MlflowClient) -> dict[str, Any]:
    """All that the runs of a store hold, timings apart, by fingerprint; a run that is not complete fails the test."""
    found: dict[str, Any] = {}
    for kind in ("train", "attack"):
        for run in runs_of(client, kind):
            assert run.data.tags.get("complete") == "true", run.data.tags
            assert run.data.tags["fingerprint"] not in found
            found[run.data.tags["fingerprint"]] = _contents(client, run)
    return found


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Where two nests of dictionaries differ."""
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return [] if found == expected else [f"{path}: {found} instead of {expected}"]
    keys = sorted(found.keys() | expected.keys())
    return [line for key in keys for line in differences(found.get(key), expected.get(key), f"{path}/{key}")]


def _contents(client: MlflowClient, run: Run) -> dict[str, Any]:
    run_id = run.info.run_id
    curves = {
        key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        for key in run.data.metrics
        if key != "seconds"
    }
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    tags = ("kind", "mlflow.note.content", "mlflow.loggedArtifacts", "mlflow.loggedImages")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {key: sorted(points) for key, points in curves.items()},
        "tags": {tag: run.data.tags.get(tag) for tag in tags},
        "data": [one.dataset.digest for one in run.inputs.dataset_inputs],
        "inputs": len(client.get_run(run_id).inputs.model_inputs),
        "models": [str(model.status) for model in models],
        "artifacts": _digests(Path(client.download_artifacts(run_id, ""))),
    }


def _digests(folder: Path) -> dict[str, str]:
    """Of each file; pictures, which MLflow gives names of their own, by key and step."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    own_names = re.compile(r"\+timestamp\+\d+\+[0-9a-f-]{36}")
    named = [(own_names.sub("", path.relative_to(folder).as_posix()), path) for path in files]
    assert len(named) == len(dict(named))
    return {name: _digest(path) for name, path in named}


def _digest(path: Path) -> str:
    if path.name == "config.yaml":  # which names the store
        return re.sub(r"uri: sqlite:.*", "", path.read_text())
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="np") as file:  # whose metadata have no fixed order
        tensors = {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in sorted(file.keys())}
        return json.dumps([tensors, file.metadata()], sort_keys=True)
