"""A headless browser, and a small sweep with a tracking server of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from tests.pipelines.conftest import QUICK, runs_of

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
SWEEP = ["bits=FP,1", "attack=fgsm", "seed=0,1", "+training.steps_per_epoch=3", *QUICK]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with api.sync_playwright() as playwright:
        folder = str(tmp_path_factory.mktemp("browser"))
        context = playwright.chromium.launch_persistent_context(folder, executable_path=CHROMIUM, args=FLAGS)
        context.set_default_timeout(120_000)
        yield context
        context.close()


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("swept")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "QNN"))}
    launch = [sys.executable, "-m", "pipelines.attack", "-m", *SWEEP]
    subprocess.run(launch, cwd=folder, env=ours, check=True, capture_output=True, timeout=900)
    return folder


@pytest.fixture(scope="session")
def client(swept: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{swept / 'mlflow.db'}")


@pytest.fixture(scope="session")
def parent(client: MlflowClient):
    (run,) = runs_of(client, "sweep")
    return run


@pytest.fixture(scope="session")
def server(swept: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = [f"--backend-store-uri=sqlite:///{swept / 'mlflow.db'}", f"--artifacts-destination={swept / 'mlartifacts'}"]
    command = [sys.executable, "-m", "mlflow", "server", *store, f"--port={port}", "--workers=1"]
    process = subprocess.Popen(command, cwd=swept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for(address: str, process: subprocess.Popen) -> None:
    deadline = time.time() + 180
    while time.time() < deadline and process.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise RuntimeError("the MLflow server did not start")
