"""Real services, started by the scripts of `deploy/`, as a user starts them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

DEPLOY = Path(__file__).parents[2] / "deploy"


def need(*programs: str) -> None:
    absent = [name for name in programs if shutil.which(name) is None and not _in_postgresql(name)]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}: make test-full installs it")


def _in_postgresql(name: str) -> bool:
    return any(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))


@pytest.fixture(scope="module")
def enterable() -> Iterator[Path]:
    """A folder that other users can enter, as the one PostgreSQL runs as under root: pytest's own they cannot."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def serving(state: Path, *options: str, **variables: str) -> Iterator[str]:
    """Run `deploy/server.sh` for the length of the block; its address."""
    need("pg_ctl", "initdb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = state / "server.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            [DEPLOY / "server.sh", "--workers", "2", *options],
            env={**clean_environment(), "STATE": str(state), "PORT": str(port), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: _answers(port) or server.poll() is not None, 600)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=300)


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without what it says of tracking, with this Python's programs first."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "QNN"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    return {**ours, "PATH": path, **more}


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    except requests.RequestException:
        return False
