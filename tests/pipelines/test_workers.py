"""How parallel jobs share a machine."""

import json
import platform
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig

from pipelines import workers


@pytest.fixture
def launched(monkeypatch):
    """Set the launcher that this process seems to be a job of; the machine seems to have 8 cores."""
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "_held", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers.visible_gpus.cache_clear()
    HydraConfig.instance().cfg = None

    def launch(*overrides: str) -> None:
        with initialize_config_module("conf", version_base="1.3"):
            HydraConfig.instance().set_config(compose("attack", list(overrides), return_hydra_config=True))

    yield launch
    HydraConfig.instance().cfg = None
    workers.visible_gpus.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        ([], 8),
        (["hydra/launcher=joblib"], 1),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"], 2),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-1"], 1),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 2),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=100"], 1),
    ],
)
def test_jobs_share_the_cores(launched, overrides, threads):
    launched(*overrides)
    assert workers.threads() == threads


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("3", 3), ("2,1", 2), ("64", 8), ("0", 8), ("many", 8)])
def test_no_more_threads_than_the_environment_says(launched, monkeypatch, said, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    launched()
    assert workers.threads() == threads


REUSE = """
import resource, sys, torch
from pipelines.workers import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(4):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again_without_asking_the_system():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", REUSE, how], capture_output=True, check=True).stdout)
        for how in ("kept", "as usual")
    }
    assert faults["kept"] < 0.1 * faults["as usual"]


def test_without_hydra_a_process_has_all_cores(launched):
    assert workers.threads() == 8


def test_a_task_of_a_cluster_has_the_cores_it_was_given(launched):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launched("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=3")
    assert workers.threads() == 3
    assert HydraConfig.get().launcher.additional_parameters == {"requeue": True}


@pytest.mark.parametrize(("gpus", "jobs"), [(0, 8), (1, 1), (4, 4)])
def test_one_worker_per_gpu_or_per_core(launched, monkeypatch, gpus, jobs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    launched("hydra/launcher=joblib")
    assert HydraConfig.get().launcher.n_jobs == jobs


@pytest.mark.parametrize(
    ("named", "gpus"),
    [(None, ("0", "1", "2")), ("", ("0", "1", "2")), ("4,5,7", ("4", "5", "7")), ("2,1,0,6", ("2", "1", "0"))],
)
def test_gpus_are_those_the_user_left_visible(launched, monkeypatch, named, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert workers.visible_gpus() == gpus


@pytest.mark.parametrize(("workers_", "gpus"), [(8, 4), (4, 4), (3, 2), (2, 4)])
def test_gpus_go_round_and_differ_by_at_most_one_worker(workers_, gpus):
    names = tuple(map(str, range(gpus)))
    counts = Counter(workers.gpu_of(slot, names) for slot in range(workers_))
    assert max(counts.values()) - min(counts.values()) <= 1 or workers_ < gpus
    assert len(counts) == min(workers_, gpus)


_WORKER = """
import json, os, sys
from pathlib import Path
from pipelines import workers
workers.visible_gpus = lambda: ("3", "5")
workers.jobs_here = lambda: 4
folder = Path(sys.argv[1])
for _ in range(2):  # two jobs of one worker
    workers.take_gpu(folder)
print(json.dumps(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
sys.stdin.read()
"""


def test_each_worker_keeps_a_gpu_and_one_that_dies_leaves_it_to_the_next(tmp_path):
    def start() -> tuple[subprocess.Popen, str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return worker, json.loads(worker.stdout.readline())

    running = [start() for _ in range(4)]
    try:
        assert [gpu for _, gpu in running] == ["3", "5", "3", "5"]
        running[1][0].kill()
        running[1][0].wait()
        running.append(start())
        assert running[-1][1] == "5"
    finally:
        for worker, _ in running:
            worker.kill()
            worker.wait()
