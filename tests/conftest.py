"""What the tests of several packages need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

# xdist has a worker per core: more threads each, here or in what tests launch, wait for one another
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

UNPACKER = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing that the full tests run for real may be missing."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("full"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytest removes its folders; `MlflowClient.download_artifacts` never removes the copies it makes."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds the original MNIST files, and CIFAR-10 where it is at hand too."""
    given = os.environ.get("QNN_DATA")
    if given and (Path(given) / "MNIST" / "raw").is_dir():
        return Path(given)
    if UNPACKER.is_file():
        root = tmp_path_factory.mktemp("real-data")
        subprocess.run([sys.executable, str(UNPACKER), str(root)], check=True, capture_output=True)
        return root
    pytest.skip("real MNIST is not at hand: set QNN_DATA")
