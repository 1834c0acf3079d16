"""Defended networks from training to attack, on the bundled digits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from mlflow import MlflowClient
from omegaconf import DictConfig
from torch import nn

from attacks import lavan, load_examples, select_correct
from pipelines import attack, networks, released, settings, train
from pipelines.errors import InputError
from pipelines.fingerprints import fingerprint
from qnn.checkpoint import load_weights, read_description
from qnn.data import Batches, ImageData, Split
from qnn.defences import Defence
from qnn.evaluation import predict
from qnn.recipes import CrossEntropy, Step
from qnn.switchable import RandomWidth, at_width, widths_of
from tests.pipelines.conftest import QUICK, runs_of

SMALL = (
    *(q for q in QUICK if not q.startswith("n=")),
    "quantizer=uniform",
    "model.net.width=4",
    "training.batch_size=256",
)
PATCH = ("attack=patch_lavan", "attack.max_iter=3", "attack.craft_n=20", "n=6")
DEFENCES = ("none", "pbat", "pbat_finetuned", "dwq", "dwq_patch", "qadt_r", "qadt_r_fixed", "triqdef")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", ["quantizer=uniform", *overrides])


def composed_attack(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("attack", ["quantizer=uniform", *overrides])


def digits_named_cifar10() -> ImageData:
    """Few images of the shape and names of CIFAR-10, which is not there everywhere."""
    names = [f"class {number}" for number in range(10)]
    split = Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    return ImageData("cifar10", tuple(names), split, split, split, "0" * 16)


def identity(*overrides: str) -> str:
    return fingerprint(train.identity(composed(*overrides)))


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("bits", ["FP", "4"])
def test_every_defence_composes_and_checks(defence, bits, monkeypatch):
    monkeypatch.setattr(settings, "load_data", lambda cfg: digits_named_cifar10())
    train.check_network(composed("data=cifar10", "model=resnet20", f"defence={defence}", f"bits={bits}"))


def test_a_network_of_several_widths_is_one_training():
    assert identity("defence=qadt_r", "bits=4") == identity("defence=qadt_r", "bits=2")
    assert identity("bits=4") != identity("bits=2")
    assert identity("defence=qadt_r_fixed", "bits=4") != identity("defence=qadt_r_fixed", "bits=2")


def test_undefended_networks_have_the_fingerprint_they_had_before_there_were_defences():
    assert "defence" not in train.identity(composed("bits=4"))
    assert "defence" in train.identity(composed("bits=4", "defence.widths=[FP,4]"))


def test_a_single_width_is_a_network_of_one_width():
    cfg = composed("defence=qadt_r_fixed", "bits=FP")  # Mnist A has nothing that could be switched at FP
    assert settings.trained_widths(cfg) == ()
    train.check_network(cfg)
    net = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    objective = settings.objective(cfg)
    assert objective.trained_widths == ()
    assert objective(net, images, labels, Step(0, 5, 0))["loss"].requires_grad


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["defence.widths=4"], "must be a list"),
        (["defence.widths=[FP,99]"], "bits=99 is not a bit width"),
        (["defence.widths=[2]", "bits=4"], "trains 2 alone, not bits=4"),
        (["defence=qadt_r", "defence.objective.gir=loud"], "gir=loud is unknown"),
        (["defence=qadt_r", "defence.widths=[FP,1]"], "no 1-bit weights"),
        (["defence=triqdef", "defence.widths=[FP,2]"], "not trained: 4, 5"),
        (["defence=triqdef"], "defence=triqdef: MnistConvNet does not say where its stages end"),
        (["defence=qadt_r", "training.epochs=1"], "widths 5, 4, 2 would never be trained"),
        (["defence=qadt_r", "training.epochs=2", "training.batch_size=1000"], "of 2 steps are too few: widths"),
        (["defence=dwq", "defence.objective.order=epoch", "training.epochs=4"], "widths 2 would never be trained"),
        (["defence=qadt_r", "defence.objective.dbwt=false"], "defence=qadt_r_fixed"),
    ],
)
def test_impossible_defences_are_one_line(overrides, message):
    with pytest.raises(InputError, match=message):
        train.check_network(composed(*overrides))


@pytest.fixture(scope="module")
def defended(attacked, shared_store: MlflowClient):
    return [attacked(*SMALL, "defence=qadt_r", "training.epochs=2", *PATCH, f"bits={bits}") for bits in ("4", "2", "3")]


def test_one_training_serves_all_widths(defended, shared_store: MlflowClient):
    (training,) = runs_of(shared_store, "train")
    assert training.data.params["bits"] == "FP 8 5 4 2"
    assert training.data.params["defence.objective.gir"] == "inconsistency"
    assert {f"test_accuracy.{bits}" for bits in ("FP", "8", "5", "4", "2")} <= training.data.metrics.keys()
    assert {
        "train_clean_loss",
        "train_adversarial_loss",
        "train_gradient_inconsistency",
    } <= training.data.metrics.keys()
    for run, bits in zip(defended[:2], ("4", "2"), strict=True):
        assert run.data.params["bits"] == bits
        assert run.data.metrics["clean_accuracy"] == training.data.metrics[f"test_accuracy.{bits}"]
    assert defended[2].data.params["bits"] == "3"
    stored = Path(shared_store.download_artifacts(training.info.run_id, train.ARTIFACT))
    assert json.loads((stored / "network.json").read_text())["widths"] == ["FP", "8", "5", "4", "2"]


def test_the_patch_is_kept_with_the_images_it_lies_on(defended, shared_store: MlflowClient):
    examples = load_examples(
        Path(shared_store.download_artifacts(defended[0].info.run_id, "examples/adversarial.safetensors"))
    )
    assert examples.patch.shape == (1, 6, 6)
    for image, (row, column) in zip(examples.x_adv, examples.corners.tolist(), strict=True):
        assert (image[:, row : row + 6, column : column + 6] == examples.patch).all()
    names = {file.path for file in shared_store.list_artifacts(defended[0].info.run_id)}
    assert "patches.png" in names


def test_an_attack_may_be_made_on_other_widths_than_it_is_judged_at(attacked, shared_store: MlflowClient):
    common = (*SMALL, "defence=qadt_r", "training.epochs=2", *PATCH, "bits=4")
    runs = [attacked(*common, f"surrogate={surrogate}") for surrogate in ("2", "all")]
    assert [run.data.params["surrogate"] for run in runs] == ["2", "all"]
    assert len(runs_of(shared_store, "train")) == 1
    own, other = (run.data.metrics["forwards_per_image"] for run in runs)
    assert own == other


def test_a_start_is_trained_first_and_its_weights_are_where_training_begins(command, client: MlflowClient):
    common = (*SMALL, "training.batch_size=64", "training.epochs=2", "defence=pbat_finetuned", "bits=4")
    start = ("training@defence.start.training=mnist_fast", "defence.start.training.epochs=2")
    assert command("train", "-m", *common, *start, "defence.start.defence.objective.adversary.max_iter=1") == 0
    (sweep,) = runs_of(client, "sweep")
    assert sweep.data.params["training:defence.start.training"] == "mnist_fast"
    names = [run.info.run_name for run in runs_of(client, "train")]
    start_name = "train mnist_a FP pbat uniform adversary.max_iter=1"
    assert sorted(names) == ["train mnist_a 4-bit pbat_finetuned uniform", start_name]


def test_a_released_network_may_be_the_start_and_is_part_of_the_fingerprint(monkeypatch):
    chosen = ("data=cifar10", "model=resnet20", "+start=fp", "training=resnet_short", "defence=qadt_r")
    monkeypatch.setattr(settings, "load_data", lambda cfg: digits_named_cifar10())
    cfg = composed(*chosen)
    assert (
        train.identity(cfg)["start"]
        == read_description(released.choose(train.start_config(cfg), digits_named_cifar10()))["fingerprint"]
    )
    assert fingerprint(train.identity(cfg)) != identity(*chosen[:2], *chosen[3:])


def test_a_start_with_a_quantiser_of_its_own_has_none_of_the_network_s_settings():
    cfg = composed("data=cifar10", "model=resnet20", "+start=fp", "+quantizer.activation_range=largest")
    assert settings.build_network(train.start_config(cfg), digits_named_cifar10())
    assert settings.build_network(cfg, digits_named_cifar10())


def test_a_start_with_a_recipe_of_its_own_has_none_of_the_network_s_settings():
    given = composed("data=cifar10", "model=resnet20", "defence=pbat_finetuned", "training=resnet_short")
    plain = composed("data=cifar10", "model=resnet20", "training=resnet_fast")
    assert train.start_config(given).training == plain.training


def test_every_width_of_a_defence_starts_from_the_released_network(monkeypatch):
    monkeypatch.setattr(settings, "load_data", lambda cfg: digits_named_cifar10())
    cfg = composed("data=cifar10", "model=resnet20", "+start=fp", "defence=qadt_r")
    net = settings.build_network(cfg, digits_named_cifar10())
    start = train.start_config(cfg)
    train._start_from(net, train._trained_start(start, tracker=None, parent=None))
    alone = load_weights(
        settings.build_network(start, digits_named_cifar10()), released.choose(start, digits_named_cifar10())
    )
    for width in ("FP", "2"):
        assert torch.equal(at_width(net, width).blocks[3].conv1.weight, alone.blocks[3].conv1.weight)
        assert torch.equal(at_width(net, width).stem[1].running_var, alone.stem[1].running_var)


def test_at_random_widths_images_are_attacked_that_every_width_gets_right():
    """Else an image that some widths get wrong would be broken by drawing, without an attack."""

    class Right(torch.nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, x):
            place = x.flatten(1)[:, 0] * 255
            return torch.nn.functional.one_hot(torch.where(place < 100 * self.share, 3, 4).long(), 10).float()

    images = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1)
    split = Split(images, torch.full((100,), 3))
    drawn = RandomWidth([Right(0.9), Right(0.8)], seed=0)
    chosen = networks.images_right(drawn, split, torch.device("cpu"), n=100, seed=0)
    assert sorted(chosen.indices.tolist()) == list(range(80))


def test_inference_at_random_widths_is_one_cell_whatever_the_bits(attacked, shared_store: MlflowClient):
    widths = ("defence=dwq_patch", "defence.widths=[FP,8]", "defence.objective.adversary.max_iter=1")
    common = (*SMALL, *widths, "training.epochs=4", "training.batch_size=64", *PATCH)
    run = attacked(*common, "inference=random")
    assert run.data.params["inference"] == run.data.params["bits"] == "random"
    assert "width_in_bits" not in run.data.metrics
    trained = shared_store.get_run(run.data.tags["source_run_id"]).data.metrics
    accuracies = [trained[f"test_accuracy.{width}"] for width in ("FP", "8")]
    assert run.data.metrics["clean_accuracy"] == pytest.approx(sum(accuracies) / 2)
    adaptive = attacked(*common, "inference=random", "surrogate=all")
    assert adaptive.data.params["surrogate"] == "all"
    at_random = [attack.identity(composed_attack(*common, "inference=random", f"bits={bits}")) for bits in ("FP", "2")]
    assert at_random[0] == at_random[1]


def test_an_untrained_width_is_measured_on_images_of_every_class(monkeypatch):
    """Images in folders are read class by class."""
    monkeypatch.setattr(networks, "CALIBRATION_IMAGES", 400)
    cfg = composed_attack("data=digits", "model.net.width=4", "defence.widths=[FP,4]", "bits=3")
    data = settings.load_data(cfg)
    order = data.train.labels.argsort(stable=True)
    data = replace(data, train=Split(data.train.images[order], data.train.labels[order]))
    seen: list[list[torch.Tensor]] = []
    monkeypatch.setattr(networks, "add_width", lambda net, bits, build, images: seen.append(list(images)))
    monkeypatch.setattr(networks, "at_width", lambda net, bits: net)
    described = {"test_accuracies": {}, "fingerprint": "made up"}
    for _ in range(2):
        networks._at_configured_width(cfg, data, settings.build_network(cfg, data), described)
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert sum(map(len, seen[0])) == 400
    digits = {
        image.numpy().tobytes(): int(label) for image, label in zip(data.train.pixels(), data.train.labels, strict=True)
    }
    for batch in seen[0]:
        classes = [digits[image.numpy().tobytes()] for image in batch]
        assert set(classes) == set(range(10))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inference=random"], "needs a network of several"),
        (["inference=sometimes"], "use fixed or random"),
        (["attack.size=40"], "does not fit into images of 28×28"),
        (["attack.universal=false"], "attack.craft=attacked"),
        (["attack.target=random"], "give it a class"),
        (["backend=art"], "own patch attack"),
        (["surrogate=all"], "a network of several widths"),
        (["surrogate=3", "defence=qadt_r", "training.epochs=2"], "all or one of FP, 8, 5, 4, 2"),
    ],
)
def test_impossible_patch_attacks_are_one_line_before_any_training(command, capsys, client, overrides, message):
    assert command("attack", *SMALL, *PATCH, *overrides) == 1
    assert message in capsys.readouterr().err
    assert not runs_of(client, "train")


def patched_success_rate(*overrides: str) -> float:
    """Share of 200 test digits that a patch of its own breaks, at 4 bits, after a short training of a defence."""
    cfg = composed("model.net.width=8", *overrides)
    data = settings.load_data(cfg)
    torch.manual_seed(0)
    net, objective = settings.build_network(cfg, data), settings.objective(cfg) or CrossEntropy()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for number, (images, labels) in enumerate(Batches(data.train, 64, shuffle=True, steps=200)):
        optimizer.zero_grad()
        objective(net, images, labels, Step(number // 20, 10, number))["loss"].backward()
        optimizer.step()
    victim = at_width(net, "4").eval() if widths_of(net) else net.eval()
    chosen = select_correct(lambda images: predict(victim, images), data.test.pixels, data.test.labels, n=200, seed=0)
    x = data.test.pixels(chosen.indices)
    patched = lavan(
        victim, x, chosen.labels, size=8, universal=False, max_iter=15, eps_step=0.1, placement="random"
    ).x_adv
    return float((predict(victim, patched).argmax(1) != chosen.labels).float().mean())


@pytest.fixture(scope="module")
def undefended() -> float:
    return patched_success_rate("defence.widths=[FP,8,5,4,2]")


@pytest.mark.parametrize("defence", ["pbat", "dwq_patch", "qadt_r"])
def test_a_defence_defends(defence, undefended):
    patches = ("defence.objective.adversary.max_iter=5", "defence.objective.adversary.size=8")
    assert patched_success_rate(f"defence={defence}", "bits=4", *patches) < undefended - 0.1


def gradients_of_a_step(*overrides: str, plain: bool = False) -> torch.Tensor:
    """Of all weights of a small ResNet, in a step in which all widths have entered, for two steps of the patch.

    Args:
        plain: of the cross-entropy of the same images at the same widths.
    """
    quick = ("model.net.n=1", "defence.objective.adversary.max_iter=2")
    cfg = composed("data=cifar10", "model=resnet20", "bits=2", *quick, *overrides)
    objective = settings.objective(cfg)
    if plain:
        objective = Defence(widths=objective.schedule.widths, order=objective.schedule.order)
    torch.manual_seed(0)
    net = settings.build_network(cfg, digits_named_cifar10())
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    objective(net, images, labels, Step(9, 10, 0))["loss"].backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() > 0.01 * b.norm())


FIXED = "defence=qadt_r_fixed"
NO_GIR = "defence.objective.gir=none"


@pytest.mark.parametrize(
    "overrides",
    [
        ("defence=pbat",),
        ("defence=dwq",),
        ("defence=dwq_patch",),
        ("defence=triqdef",),
        ("defence=qadt_r",),
        (FIXED,),
        (FIXED, NO_GIR),
        (FIXED, "defence.objective.gir=noise"),
        (FIXED, "defence.objective.a_qapa=false"),
        (FIXED, NO_GIR, "defence.objective.a_qapa=false"),
    ],
    ids=" ".join,
)
def test_a_step_of_a_defence_is_not_one_of_cross_entropy(overrides):
    defended = gradients_of_a_step(*overrides)
    assert torch.equal(defended, gradients_of_a_step(*overrides))
    assert differ(defended, gradients_of_a_step(*overrides, plain=True))


@pytest.mark.parametrize(
    ("overrides", "switch"),
    [
        (("defence=dwq",), "defence.objective.share=0"),
        (("defence=triqdef",), "+defence.objective.share=0"),
        (("defence=triqdef",), "defence.objective.regularizers.0.weight=0"),
        (("defence=triqdef",), "defence.objective.regularizers.1.weight=0"),
        ((FIXED,), NO_GIR),
        ((FIXED,), "defence.objective.gir=noise"),
        ((FIXED, NO_GIR), "defence.objective.a_qapa=false"),  # GIR's noise is another after other draws of widths
    ],
    ids=str,
)
def test_each_part_of_a_defence_changes_its_steps(overrides, switch):
    assert differ(gradients_of_a_step(*overrides), gradients_of_a_step(*overrides, switch))
