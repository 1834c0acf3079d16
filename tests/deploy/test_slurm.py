"""A sweep on a real Slurm, with a node lost half way."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.deploy.conftest import DEPLOY, clean_environment, need, serving, wait_until
from tests.pipelines.conftest import QUICK, runs_of

pytestmark = pytest.mark.full
SWEEP = ["bits=FP,1,2,4", "attack=fgsm,jsma", "seed=0,1,2", "+training.steps_per_epoch=3"]
CELLS = 24
LAUNCHER = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]


@pytest.fixture
def cluster(enterable: Path) -> Iterator[dict[str, str]]:
    """The variables of a cluster of two nodes with two CPUs each."""
    need("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
    folder = enterable / "slurm"
    variables = clean_environment(SLURM_TRIAL=str(folder), SLURM_CONF=str(folder / "slurm.conf"))
    subprocess.run([DEPLOY / "slurm.sh", "start"], env=variables, check=True)
    try:
        yield variables
    finally:
        subprocess.run([DEPLOY / "slurm.sh", "stop"], env=variables, check=True)


def test_a_sweep_survives_the_loss_of_a_node(cluster, enterable, tmp_path):
    def on_cluster(*command: str) -> str:
        return subprocess.run(command, env=cluster, check=True, capture_output=True, text=True).stdout

    with serving(enterable) as uri:
        client = MlflowClient(uri)
        sweep = subprocess.Popen(
            [sys.executable, "-m", "pipelines.attack", "-m", *SWEEP, *QUICK[:2], *QUICK[3:], *LAUNCHER],
            cwd=tmp_path,
            env={**cluster, "MLFLOW_TRACKING_URI": uri},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(complete(client)) >= CELLS // 2 or sweep.poll() is not None, 1200)
        assert sweep.poll() is None, sweep.communicate()[1]
        on_cluster(str(DEPLOY / "slurm.sh"), "kill", "n1")
        assert len(complete(client)) < CELLS
        # what the node did is queued again once it counts as lost, and begins two minutes later
        errors = sweep.communicate(timeout=1200)[1]

        assert sweep.returncode == 0, errors
        # a task that had delivered its result when it was lost finds it complete
        ended = re.search(r"(\d+) cells done, 0 were complete, 0 failed(?:, (\d+) completed by others)?", errors)
        assert ended, errors
        assert sum(map(int, filter(None, ended.groups()))) == CELLS
        counts = Counter(complete(client))
        assert len(counts) == CELLS
        assert set(counts.values()) == {1}
        assert len([run for run in runs_of(client, "train") if run.data.tags.get("complete")]) == 4
        (parent,) = runs_of(client, "sweep")
        assert parent.info.status == "FINISHED"
        assert re.search(r"Restarts=[1-9]", on_cluster("scontrol", "show", "jobs"))


def complete(client: MlflowClient) -> list[str]:
    """The fingerprints of the complete attacks, as often as they are complete."""
    tags = [run.data.tags for run in runs_of(client, "attack")]
    return [tag["fingerprint"] for tag in tags if tag.get("complete") == "true"]
