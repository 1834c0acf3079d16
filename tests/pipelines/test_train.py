import json
from pathlib import Path

import mlflow
import numpy as np
import torch

from pipelines import train
from pipelines.train import ARTIFACT
from qnn.checkpoint import rebuild
from qnn.data import digits
from qnn.evaluation import evaluate, predict
from tests.pipelines.conftest import runs_of


def test_training_is_tracked_and_its_network_can_be_loaded_again(command, client, workspace, capsys):
    assert command("train", "bits=2", "training.epochs=2", "trainer.threads=1") == 0
    (found,) = runs_of(client, "train")
    run = client.get_run(found.info.run_id)
    assert run.data.tags["complete"] == "true"
    assert run.info.run_name == "train mnist_a 2-bit"
    assert run.data.params["bits"] == "2"
    assert run.data.params["training.optimizer.lr"] == "0.001"
    assert run.inputs.dataset_inputs[0].dataset.digest == digits().digest
    for curve in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
        assert len(client.get_metric_history(run.info.run_id, curve)) == 2

    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=ARTIFACT)
    stored = rebuild(workspace / folder)
    assert evaluate(stored, digits().test)["accuracy"] == run.data.metrics["test_accuracy"]

    images = digits().test.pixels(slice(0, 4))
    (model,) = client.search_logged_models([run.info.experiment_id])
    logits = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(images.numpy())
    np.testing.assert_allclose(logits, predict(stored, images).numpy(), rtol=1e-5, atol=1e-5)


def test_the_same_training_is_not_done_twice_unless_forced(command, client):
    for extra in ([], [], ["force=true"]):
        assert command("train", "bits=1", "training.epochs=1", "trainer.threads=1", *extra) == 0
    runs = runs_of(client, "train")
    assert len(runs) == 2
    networks = [mlflow.artifacts.download_artifacts(run_id=r.info.run_id, artifact_path=ARTIFACT) for r in runs]
    first, second = (rebuild(Path(folder)).state_dict() for folder in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_recipe_scales_the_norms_before_clips_of_a_new_network(command, monkeypatch):
    scaled = []
    monkeypatch.setattr(train, "scale_clipped_norms", lambda net, scale, in_units: scaled.append((scale, in_units)))
    common = ("bits=1", "training.epochs=1", "trainer.threads=1")
    assert command("train", *common) == 0
    assert scaled == []
    assert command("train", *common, "+training.clipped_norm_scale=0.5") == 0
    assert command("train", *common, "+training.clipped_norm_scale=0.5", "+training.clipped_norm_in_units=true") == 0
    assert scaled == [(0.5, False), (0.5, True)]


def test_diverging_training_fails_with_its_reason(command, client, capsys):
    overrides = ("bits=FP", "training.epochs=1", "training.optimizer.lr=1e30", "training.scheduler=null")
    assert command("train", "-m", *overrides) == 1
    (run,) = runs_of(client, "train")
    assert run.info.status == "FAILED"
    assert "the training loss is nan" in run.data.tags["failure"]
    assert "failed: train mnist_a FP: the training loss is nan" in capsys.readouterr().err


def test_checkpoints_of_a_finished_training_are_gone(command, workspace):
    assert command("train", "bits=1", "training.epochs=1", "trainer.threads=1") == 0
    assert not list(workspace.rglob("*.ckpt"))
    assert json.loads(next(workspace.rglob("network.json")).read_text())["bits"] == "1"
