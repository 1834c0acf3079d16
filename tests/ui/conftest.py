"""A headless browser, and a small sweep with a tracking server of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipelines.conftest import QUICK
from tests.pipelines.launching import Server, environment, runs_of

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
    launch = [sys.executable, "-m", "pipelines.attack", "-m", *SWEEP]
    subprocess.run(launch, cwd=folder, env=environment(), check=True, capture_output=True, timeout=900)
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
    server = Server(swept, database="mlflow.db", artifacts="mlartifacts")
    server.start()
    yield server.uri
    server.kill()
