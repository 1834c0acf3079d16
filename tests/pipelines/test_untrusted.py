"""Pickles that would run code, in every place where a file is read: a clear error, and nothing is run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.conftest import QUICK
from tests.pipelines.launching import runs_of

MARKER = "hacked"
TRAINING = tuple(one for one in QUICK if not one.startswith("n="))


class Malicious:
    def __reduce__(self):
        return os.mkdir, (MARKER,)


def plant(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))


def in_a_checkpoint(command, client) -> tuple[int, str]:
    """Of an interrupted training: it is set aside, and the training is done from its beginning."""
    status = command("train", "bits=1", *TRAINING)
    (run,) = runs_of(client, "train")
    client.delete_run(run.info.run_id)
    for name in ("last.ckpt", "best.ckpt"):
        plant(Path("outputs/training") / run.data.tags["fingerprint"] / name)
    assert status == 0
    return 1 - command("train", "bits=1", *TRAINING), "best.ckpt is damaged: it was set aside"


def in_a_stored_network(command, client) -> tuple[int, str]:
    assert command("train", "bits=1", *TRAINING) == 0
    weights = next(Path("mlartifacts").rglob("weights.safetensors"))
    plant(weights)
    return command("attack", "bits=1", f"network={weights.parent}", *QUICK), "is damaged or cut short"


def in_the_artifact_of_a_run(command, client) -> tuple[int, str]:
    assert command("train", "bits=1", *TRAINING) == 0
    for weights in Path("mlartifacts").rglob("weights.safetensors"):
        plant(weights)
    return command("attack", "bits=1", *QUICK), "is damaged or cut short"


def in_the_description_of_a_network(command, client) -> tuple[int, str]:
    plant(Path("stored/network.json"))
    return command("attack", "bits=1", "network=stored", *QUICK), "network.json cannot be read"


def in_adversarial_examples(command, client) -> tuple[int, str]:
    assert command("train", *TRAINING) == 0
    plant(Path("examples.safetensors"))
    status = command("evaluate", "training.epochs=1", "examples=examples.safetensors")
    return status, "holds no stored adversarial examples"


def in_data(command, client) -> tuple[int, str]:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        plant(Path("data/cifar-10-batches-py") / name)
    arguments = ("data=cifar10", "data.root=data", "data.download=false", "model=resnet20")
    return command("train", *arguments), "refused: it wants to import"


def in_a_kept_result(command, client) -> tuple[int, str]:
    """It is set aside, and its cell is run again."""
    assert command("train", "bits=1", *TRAINING) == 0
    (run,) = runs_of(client, "train")
    client.delete_run(run.info.run_id)
    plant(Path("outputs/results") / run.data.tags["fingerprint"] / "result.json")
    return 1 - command("train", "bits=1", *TRAINING), "is damaged: set aside"


@pytest.mark.parametrize(
    "plant_and_run",
    [
        in_a_checkpoint,
        in_a_stored_network,
        in_the_artifact_of_a_run,
        in_the_description_of_a_network,
        in_adversarial_examples,
        in_data,
        in_a_kept_result,
    ],
)
def test_no_code_in_what_is_read_is_run(plant_and_run: Callable, command, client, workspace, capsys):
    status, said = plant_and_run(command, client)
    assert status == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
    assert not list(workspace.rglob(MARKER))


def test_the_malicious_pickle_would_run(workspace):
    plant(Path("pickle"))
    pickle.loads(Path("pickle").read_bytes())
    assert (workspace / MARKER).is_dir()
