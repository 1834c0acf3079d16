import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import AdversarialExamples, load_examples
from pipelines import evaluate, settings, train, transfer
from pipelines.attack import EXAMPLES
from pipelines.errors import InputError
from pipelines.evaluate import joint_record
from pipelines.train import ARTIFACT
from pipelines.transfer import PER_IMAGE, TABLE, target_configs
from qnn.checkpoint import rebuild
from qnn.data import Split, digits
from qnn.evaluation import predict
from qnn.freezing import freeze
from tests.pipelines.conftest import QUICK, runs_of
from tests.pipelines.launching import environment
from tests.pipelines.test_bad_input import assert_one_line_with, nothing_runs

CPU = torch.device("cpu")
COLUMNS = [
    "target_model", "target_bits", "target_training_seed", "target_network", "n", "adversarial_accuracy",
    "adversarial_accuracy_low", "adversarial_accuracy_high", "transfer_rate", "attack_success_rate", "l2", "l2_median",
    "linf", "test_accuracy",
]  # fmt: skip


def table(client, run, name=TABLE):
    return pd.read_json(client.download_artifacts(run.info.run_id, name), orient="split", dtype={"target_bits": str})


def only_run(client, kind):
    (run,) = runs_of(client, kind)
    return client.get_run(run.info.run_id)


class Lookup(nn.Module):
    """Predicts the class listed for the grey value of a one-pixel image."""

    def __init__(self, classes: dict[int, int]) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        greys = (images.flatten() * 255).round().int().tolist()
        return F.one_hot(torch.tensor([self.classes[grey] for grey in greys]), 3).float()


def one_pixel_images(greys: list[int]) -> Tensor:
    return torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1)


SPLIT = Split(one_pixel_images([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 0, 1, 2]))
ORDER = torch.tensor([4, 5, 3, 2, 1, 0])
ON = AdversarialExamples(one_pixel_images([104, 105, 103, 102, 101, 100]) / 255, ORDER, SPLIT.labels[ORDER], {})
CLEAN = {0: 0, 1: 0, 2: 2, 3: 0, 4: 1, 5: 1}  # wrong on images 1 and 5
ADVERSARIAL = {100: 0, 101: 1, 102: 1, 103: 0, 104: 2, 105: 2}  # wrong on those made of images 2 and 4


@pytest.mark.parametrize("batch", [1, 2, 1000])
@pytest.mark.parametrize(
    ("count", "kept", "evaded"),
    [
        (None, [4, 3, 2, 0], [True, False, True, False]),
        (3, [4, 3, 2], [True, False, True]),
        (1, [4], [True]),
        (9, [4, 3, 2, 0], [True, False, True, False]),
    ],
)
def test_the_first_images_that_both_networks_get_right_are_kept_in_their_order(batch, count, kept, evaded, monkeypatch):
    monkeypatch.setattr(evaluate, "EVALUATION_BATCH", batch)
    record = joint_record(Lookup(CLEAN | ADVERSARIAL), ON, SPLIT, device=CPU, count=count)
    assert record["index"].tolist() == kept
    assert record["evaded"].tolist() == evaded
    assert record["label"].tolist() == SPLIT.labels[kept].tolist()
    assert record["l2"].tolist() == pytest.approx([100 / 255] * len(kept))


def test_targeted_examples_succeed_where_they_are_taken_for_their_target():
    targeted = dataclasses.replace(ON, targets=torch.tensor([2, 0, 2, 0, 2, 1]))
    record = joint_record(Lookup(CLEAN | ADVERSARIAL), targeted, SPLIT, device=CPU)
    assert record["evaded"].tolist() == [True, False, True, False]
    assert record["success"].tolist() == [True, False, False, False]


def test_a_network_that_gets_no_clean_image_right_has_nothing_to_resist_with():
    with pytest.raises(InputError, match="none of the examples' clean images"):
        joint_record(Lookup(dict.fromkeys(CLEAN, 0) | {0: 1, 3: 1}), ON, SPLIT, device=CPU)


def test_transfer_to_the_source_itself_gives_the_attack_s_figures_and_means_leave_it_out(command, client, capsys):
    settings = ("bits=1", "n=40", "targets.bits=[FP,1]", "training.epochs=1", "trainer.threads=1")
    assert command("transfer", *settings) == 0
    attack, run = only_run(client, "attack"), only_run(client, "transfer")
    found = table(client, run)
    assert found.columns.tolist() == COLUMNS
    assert found["target_bits"].tolist() == ["FP", "1"]
    other, own = found.iloc[0], found.iloc[1]
    for figure in ("n", "adversarial_accuracy", "adversarial_accuracy_low", "adversarial_accuracy_high", "l2", "linf"):
        assert own[figure] == pytest.approx(attack.data.metrics[figure], abs=1e-9)
    assert own["target_network"] == attack.data.params["network"] != other["target_network"]
    assert own["test_accuracy"] == pytest.approx(attack.data.metrics["clean_accuracy"])
    assert 0 < other["n"] <= own["n"] == 40

    images = table(client, run, PER_IMAGE)
    assert images.columns.tolist() == ["target_bits", "index", "evaded"]
    assert images.groupby("target_bits").size().to_dict() == {"1": 40, "FP": other["n"]}
    for row in (other, own):
        evaded = images.loc[images["target_bits"] == row["target_bits"], "evaded"]
        assert evaded.mean() == pytest.approx(row["transfer_rate"]) == pytest.approx(1 - row["adversarial_accuracy"])

    metrics, params = run.data.metrics, run.data.params
    assert metrics["adversarial_accuracy.1"] == own["adversarial_accuracy"]
    assert metrics["mean_adversarial_accuracy"] == pytest.approx(other["adversarial_accuracy"])
    assert metrics["mean_transfer_rate"] == pytest.approx(other["transfer_rate"])
    assert params.items() > attack.data.params.items()
    assert (params["targets.model"], params["targets.bits"], params["targets.seed"]) == ("mnist_a", "FP 1", "0")
    assert (params["apply"], params["count"]) == ("examples", "1000")
    assert run.data.tags["source_run_id"] == attack.info.run_id
    assert attack.data.tags["overrides"] == "training.epochs=1 trainer.threads=1"
    assert f"mean adversarial accuracy {other['adversarial_accuracy']:.3f}" in capsys.readouterr().err

    assert command("transfer", *settings) == 0
    assert "already complete" in capsys.readouterr().err
    assert command("transfer", *settings, "force=true") == 0
    assert [len(runs_of(client, kind)) for kind in ("train", "attack", "transfer")] == [2, 1, 2]


def test_a_universal_perturbation_is_applied_to_images_it_was_not_grown_on(command, client):
    chosen = ("attack=uap", "attack.max_iter=1", "seed=3", "apply=perturbation", "count=30", "targets.bits=[1,FP]")
    assert command("transfer", *QUICK, "n=20", *chosen) == 0
    attack, run = only_run(client, "attack"), only_run(client, "transfer")
    stored = load_examples(client.download_artifacts(attack.info.run_id, EXAMPLES))
    networks = {
        trained.data.params["bits"]: freeze(rebuild(Path(client.download_artifacts(trained.info.run_id, ARTIFACT))))
        for trained in runs_of(client, "train")
    }
    test = digits().test
    right = {bits: predict(net, test.pixels()).argmax(1) == test.labels for bits, net in networks.items()}
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(3))
    images, found = table(client, run, PER_IMAGE), table(client, run).set_index("target_bits")
    for bits, net in networks.items():
        joint = order[(right["FP"] & right[bits])[order] & ~torch.isin(order, stored.indices)][:30]
        rows = images[images["target_bits"] == bits]
        assert rows["index"].tolist() == joint.tolist()
        adversarial = (test.pixels(joint) + stored.perturbation).clamp(0, 1)
        assert rows["evaded"].tolist() == (predict(net, adversarial).argmax(1) != test.labels[joint]).tolist()
        assert found.loc[bits, "linf"] <= 0.6 + 1e-6


def test_no_image_is_left_where_all_were_attacked(command, client):
    overrides = ("attack=uap", "attack.max_iter=1", "apply=perturbation", "training.epochs=1", "targets.bits=[1]")
    assert command("transfer", *overrides, "n=100000", "trainer.threads=1") == 1
    assert not runs_of(client, "transfer")


def transfer_config(*overrides):
    return compose("transfer", list(overrides))


@pytest.fixture
def hydra():
    with initialize_config_module("conf", version_base="1.3"):
        yield


@pytest.mark.usefixtures("hydra")
def test_targets_of_the_source_s_model_are_trained_as_the_source_is():
    cfg = transfer_config("training.batch_size=64", "training.seed=2", "targets.bits=[2,w2a2,4]", "network=somewhere")
    targets = target_configs(cfg)
    assert [target.training.batch_size for target in targets] == [64] * 3
    assert [target.training.epochs for target in targets] == [60, 60, 20]
    assert [target.quantizer.bits for target in targets] == [2, "w2a2", 4]
    assert {target.training.seed for target in targets} == {2}
    assert {target.network for target in targets} == {None}
    wanted = compose("train", ["bits=4", "training.batch_size=64", "training.seed=2"])
    assert train.identity(targets[2]) == train.identity(wanted)


@pytest.mark.usefixtures("hydra")
def test_targets_of_another_model_have_its_own_recipe():
    overrides = ("training.epochs=3", "quantizer=clip_only", "study=x", "targets.model=lenet5_a", "targets.seed=5")
    (target,) = target_configs(transfer_config(*overrides, "targets.bits=[FP]"))
    wanted = compose("train", ["model=lenet5_a", "quantizer=clip_only", "training.seed=5", "study=x"])
    assert train.identity(target) == train.identity(wanted)
    assert target.study == "x"


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(("defence", "start"), [("none", ["+start=fp"]), ("pbat_finetuned", [])])
def test_targets_of_another_model_do_not_start_from_the_source_s_network(defence, start):
    patched = ("model=resnet20", "quantizer=uniform", f"defence={defence}", "attack=patch_lavan", *start)
    (target,) = target_configs(
        transfer_config(*patched, "training=resnet_short", "targets.model=vgg11", "targets.bits=[4]")
    )
    wanted = compose("train", ["model=vgg11", "quantizer=uniform", f"defence={defence}", "bits=4"])
    assert train.identity(target) == train.identity(wanted)


@pytest.mark.usefixtures("hydra")
def test_targets_may_be_trained_otherwise_than_their_recipe_and_than_a_released_source():
    shorter = ("weights=released", "targets.weights=trained", "+targets.training.epochs=2", "targets.bits=[2]")
    own, other = (target_configs(transfer_config(*shorter, f"targets.model={m}"))[0] for m in ("mnist_a", "lenet5_a"))
    for target, model in ((own, "mnist_a"), (other, "lenet5_a")):
        wanted = compose("train", [f"model={model}", "bits=2", "training.epochs=2"])
        assert train.identity(target) == train.identity(wanted)
        assert target.weights == "trained"


@pytest.mark.usefixtures("hydra")
def test_targets_have_the_source_s_data(monkeypatch):
    monkeypatch.setattr(settings, "load_data", lambda cfg: digits())
    (target,) = target_configs(transfer_config("data=paper", "targets.model=resnet20", "targets.bits=[FP]"))
    assert target.data.name == "mnist"


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(
    "setting",
    [
        "count=9",
        "apply=perturbation",
        "targets.seed=1",
        "targets.bits=[FP]",
        "targets.model=lenet5_a",
        "seed=1",
        "n=9",
        "+targets.training.epochs=2",
    ],
)
def test_what_changes_the_outcome_is_part_of_the_fingerprint(setting):
    assert transfer.identity(transfer_config("attack=uap")) != transfer.identity(transfer_config("attack=uap", setting))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["apply=nope"], "apply=nope is unknown: use examples or perturbation"),
        (["apply=perturbation"], "attack=fgsm has no universal perturbation: use attack=uap or apply=examples"),
        (["count=0"], "count=0 is out of range"),
        (["targets.bits=FP"], "targets.bits=FP must be a list, as in targets.bits=[FP,1,2]"),
        (["targets.bits=[]"], "targets.bits=[] must be a list"),
        (["targets.bits=[1,w1a1]"], "targets.bits=[1, 'w1a1'] names a width twice"),
        (["targets.bits=[17]"], "bits=17 is not a bit width"),
        (["targets.seed=x"], "targets.seed=x must be a whole number"),
        (["+targets.training.seed=1"], "targets.training.seed: the seed of the targets' training is targets.seed"),
        (["+targets.training.epoch=1"], "unexpected keyword argument 'epoch'"),
        (["targets.weights=found"], "weights=found is unknown: use trained or released"),
        (["targets.model=nope"], "targets.model=nope: In 'base': Could not find 'model/nope' Available options"),
        (["targets.model=resnet20"], "model=resnet20 takes images of shape 3×32×32"),
        (["quantizer=clip_only"], "quantizer=clip_only does not round, so it needs bits=FP"),
        (["attack.eps=2"], "attack.eps=2 is out of range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["one", "sweep"])
def test_one_line_error_before_anything_is_computed(overrides, message, mode, command, workspace, capsys, monkeypatch):
    (workspace / "mlflow.db").unlink()
    for pipeline in ("attack", "train", "transfer"):
        monkeypatch.setattr(f"pipelines.{pipeline}.run", nothing_runs)
    assert command("transfer", *mode, *overrides) == 1
    assert_one_line_with(message, capsys.readouterr().err)
    assert not (workspace / "mlflow.db").exists()


def test_a_parallel_sweep_attacks_and_trains_what_it_needs_once(workspace, client):
    axes = ["bits=FP,1", "targets.model=mnist_a,lenet5_a", "targets.bits=[FP,1]"]
    quick = ["+training.steps_per_epoch=3", *QUICK]
    command = [sys.executable, "-m", "pipelines.transfer", "-m", *axes, *quick]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for said in ("4 cells done, 0 were complete, 0 failed", "nothing to do"):
        done = subprocess.run(command, cwd=workspace, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
    assert [len(runs_of(client, kind)) for kind in ("train", "attack", "transfer", "sweep")] == [4, 2, 4, 1]
    (parent,) = runs_of(client, "sweep")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(client, "transfer")} == {parent.info.run_id}
    assert parent.info.run_name.startswith("transfer sweep, 4 cells: ")
