"""Sweeps that are killed at any moment, run again, and hold in the end what an undisturbed one holds."""

import functools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.plan import Sweep
from tests.pipelines.conftest import enter, runs_of
from tests.pipelines.launching import Launcher, contents, differences, finish, start, wait_for

SWEEP = (
    *("-m", "bits=FP,1", "attack=fgsm,jsma", "n=5", "tracking.image_rows=2"),
    *("training.epochs=4", "+training.steps_per_epoch=3", "trainer.threads=1", "trainer.accelerator=cpu"),
)
CELLS, NETWORKS = 4, 2
PATIENCE_S = 120
PHASES = ("training", "attacking", "delivering")
LATER_ON = ("attacking", "delivering", "any")


@pytest.fixture(scope="module")
def undisturbed(preloaded: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """What is in the store after a sweep over that many attack seeds."""

    @functools.cache
    def run(seeds: int) -> dict:
        folder = tmp_path_factory.mktemp("undisturbed")
        status, said = preloaded(folder, *SWEEP, over(seeds))
        assert status == 0, said
        with pytest.MonkeyPatch.context() as monkeypatch:
            enter(folder, monkeypatch)
            found = contents(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"))
        assert len(found) == CELLS * seeds + NETWORKS
        return found

    return run


def over(seeds: int) -> str:
    return f"seed={','.join(map(str, range(seeds)))}"


def phase(folder: Path) -> str:
    """What a sweep in a folder is doing, by what it has on disk."""
    results = [path for path in (folder / "outputs" / "results").glob("*") if "." not in path.name]
    if results:
        return "delivering"
    begun = list((folder / "outputs" / "results").glob("*.partial"))
    if not begun:
        return "between"
    fingerprint = begun[0].name.removesuffix(".partial")
    return "training" if (folder / "outputs" / "training" / fingerprint).exists() else "attacking"


def moment(folder: Path, chance: random.Random, wanted: str) -> Callable[[int], bool]:
    """A random moment of a phase; of any phase where that does not come."""
    limit: list[float] = []
    begun = functools.cache(time.time)

    def reached(_: int) -> bool:
        if not limit and (phase(folder) == wanted or (wanted == "any" and (folder / "outputs/sweeps").exists())):
            limit.append(time.time() + chance.uniform(0, 1.5 if wanted == "any" else 0.25))
        return bool(limit and time.time() > limit[0]) or time.time() > begun() + PATIENCE_S

    return reached


@pytest.mark.parametrize(("kills", "seeds"), [(3, 1), pytest.param(20, 6, marks=pytest.mark.full)])
def test_a_sweep_killed_at_random_moments_ends_as_if_undisturbed(
    preloaded, undisturbed, workspace, client, kills, seeds
):
    chance = random.Random(kills)
    in_training = kills // 4 or 1  # no network is left to be trained later on
    hit: Counter[str] = Counter()
    for number in range(kills):
        wanted = "training" if number < in_training else LATER_ON[(number - in_training) % len(LATER_ON)]
        status, said = preloaded(workspace, *SWEEP, over(seeds), stop=moment(workspace, chance, wanted))
        assert status == -signal.SIGKILL, said
        assert "waiting" not in said
        assert "put off" not in said
        hit[phase(workspace)] += 1
    status, said = preloaded(workspace, *SWEEP, over(seeds))
    assert status == 0, said
    assert kills < 20 or min(hit[phase] for phase in PHASES) > 0, hit
    assert not differences(contents(client), undisturbed(seeds))
    assert {run.info.status for run in runs_of(client, "sweep")} == {"FINISHED"}
    assert not list((workspace / "outputs" / "results").iterdir())
    assert not list((workspace / "outputs" / "training").iterdir())


@pytest.mark.parametrize("wanted", ["training", "attacking"])
def test_ctrl_c_ends_with_a_summary_and_how_to_go_on(preloaded, workspace, client, wanted):
    status, said = preloaded(workspace, *SWEEP, stop=moment(workspace, random.Random(0), wanted), by=signal.SIGINT)
    assert status == 130, said
    assert "interrupted" in said
    assert " not run" in said
    assert "run the same command again to do what is missing" in said
    assert "Traceback" not in said
    assert {run.info.status for run in runs_of(client, "sweep")} == {"KILLED"}
    for kind in ("train", "attack"):
        assert not [run for run in runs_of(client, kind) if run.info.status == "RUNNING"]


@pytest.mark.full
def test_ctrl_c_ends_parallel_workers_too(workspace, client):
    process = start(workspace, *SWEEP[1:], "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert wait_for(lambda: phase(workspace) in ("training", "attacking"), process)
    os.killpg(process.pid, signal.SIGINT)
    said = finish(process, status=130)
    assert "run the same command again to do what is missing" in said
    assert "Traceback" not in said
    assert wait_for(lambda: not in_group(process.pid), seconds=20), said
    assert {run.info.status for run in runs_of(client, "sweep")} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for kind in ("train", "attack") for run in runs_of(client, kind)}


@pytest.mark.full
def test_a_worker_that_is_killed_ends_the_sweep_with_a_summary(workspace, client):
    sweep = (*SWEEP[1:], "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = start(workspace, *sweep)
    assert wait_for(lambda: phase(workspace) in ("training", "attacking"), process)
    (plan,) = workspace.glob("outputs/sweeps/*/plan.json")
    worker = next(iter(Sweep(plan.parent).at_work().values())).process
    os.kill(worker.pid, signal.SIGKILL)
    said = finish(process, status=1)
    assert "the launcher failed: A worker process managed by the executor was unexpectedly terminated" in said
    assert "run the same command again to do what is missing" in said
    assert "Traceback" not in said
    assert {run.info.status for run in runs_of(client, "sweep")} == {"FAILED"}
    finish(start(workspace, *sweep))


def in_group(group: int) -> list[str]:
    """The processes of a process group."""
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/stat") if _group(path) == group]
    return [pid for pid in found if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]]


def _group(status: Path) -> int | None:
    try:
        return int(status.read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


def test_a_checkpoint_that_was_cut_short_is_set_aside(preloaded, undisturbed, workspace, client):
    train = (*(one for one in SWEEP if not one.startswith(("-m", "attack", "n=", "bits"))), "bits=1")

    def in_training(_: int) -> bool:
        return bool(list(workspace.glob("outputs/training/*/last.ckpt")))

    assert preloaded(workspace, *train, pipeline="train", stop=in_training)[0] == -signal.SIGKILL
    (checkpoint,) = workspace.glob("outputs/training/*/last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    status, said = preloaded(workspace, *train, pipeline="train")
    assert status == 0, said
    assert "last.ckpt is damaged: it was set aside, the training begins anew" in said
    (found,) = contents(client).items()
    assert not differences(dict([found]), {found[0]: undisturbed(1)[found[0]]})


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], None]]:
    """Mounts an empty file system on a folder for the test."""
    mounted = []

    def run(folder: Path, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems may not be mounted here")
        mounted.append(folder)

    yield run
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_full_disk_is_said_in_one_line_and_recovered_from(preloaded, workspace, client, mount):
    disk = workspace / "disk"
    disk.mkdir()
    mount(disk, "size=32m")
    (disk / "filling").write_bytes(bytes(2**25 - 2**16))
    sweep = (*SWEEP, "bits=1", f"work={disk / 'outputs'}")
    status, said = preloaded(workspace, *sweep)
    assert status == 1
    assert "No space left on device" in said
    assert "make room there" in said
    assert "Traceback" not in said
    (disk / "filling").unlink()
    status, said = preloaded(workspace, *sweep)
    assert status == 0, said
    assert len(contents(client)) == 3


def test_a_store_that_is_read_only_for_a_while_loses_nothing(preloaded, workspace, client, mount):
    artifacts = workspace / "mlartifacts"
    artifacts.mkdir()

    def once_training(_: int) -> bool:
        if not artifacts.is_mount() and phase(workspace) == "training":
            mount(artifacts, "ro")
        return False

    status, said = preloaded(workspace, *SWEEP, "bits=1", stop=once_training)
    assert status == 1
    assert "2 done but kept on disk" in said
    assert "Read-only file system" in said
    assert "Traceback" not in said
    subprocess.run(["umount", str(artifacts)], check=True)
    status, said = preloaded(workspace, *SWEEP, "bits=1")
    assert status == 0, said
    assert "3 results that were kept on disk delivered" in said
    assert "nothing to do" in said
    assert len(contents(client)) == 3
