"""The examples of the how-to pages, outside the package as a user has them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sklearn.datasets import load_digits

from attacks import fgsm
from pipelines.cli import launch
from qnn.checkpoint import CheckpointError, is_own, read_description, rebuild
from qnn.precision import Precision
from qnn.quantizers import DoReFa
from qnn.switchable import switchable
from tests.pipelines.conftest import enter, runs_of

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
QUICK = ("training.epochs=1", "n=5", "trainer.threads=1", "trainer.accelerator=cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the examples in it, as the working directory."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    enter(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    for example in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, example.stem, raising=False)
    return tmp_path


@pytest.fixture
def store(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


@pytest.fixture
def command(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(pipeline: str, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"pipelines.{pipeline}", "--config-dir", "conf", *words])
        return launch(pipeline)

    return run


def attack_params(store: MlflowClient) -> list[dict[str, str]]:
    return [run.data.params for run in runs_of(store, "attack")]


def test_an_attack_of_one_s_own_from_a_shell(project, store):
    words = ["--config-dir", "conf", "attack=momentum", "model=lenet5_a", "attack.decay=0.5,1", *QUICK]
    done = subprocess.run([sys.executable, "-m", "pipelines.attack", "-m", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {params["attack.decay"] for params in attack_params(store)} == {"0.5", "1"}


def test_the_attack_stays_in_its_ball_and_breaks_no_less_than_a_single_step(project):
    from momentum import momentum

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    x = torch.rand(200, 1, 8, 8)
    y = net(x).argmax(1)
    iterated, single = momentum(net, x, y, eps=0.02).x_adv, fgsm(net, x, y, eps=0.02).x_adv
    assert float((iterated - x).abs().max()) <= 0.02 + 1e-6
    assert (net(iterated).argmax(1) != y).sum() >= (net(single).argmax(1) != y).sum() > 0


def test_a_model_of_one_s_own_is_quantised(command, store):
    assert command("attack", "model=perceptron", "bits=4", "attack=fgsm", *QUICK) == 0
    (params,) = attack_params(store)
    assert (params["model"], params["model.net.hidden"]) == ("perceptron", "[128, 64]")


def test_the_model_s_first_and_last_layers_stay_at_full_precision(project):
    from perceptron import Perceptron

    layers = Perceptron(DoReFa(2)).layers
    assert [type(layer).__name__ for layer in layers if isinstance(layer, torch.nn.Linear)] == [
        "Linear", "QuantLinear", "Linear",
    ]  # fmt: skip


def test_a_quantiser_of_one_s_own_has_its_settings_tracked(command, store):
    assert command("attack", "-m", "quantizer=powers", "bits=3", "quantizer.clip=false,true", *QUICK) == 0
    assert {params["quantizer.clip"] for params in attack_params(store)} == {"False", "True"}
    assert len({params["network"] for params in attack_params(store)}) == 2


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_quantiser_gives_powers_of_two(project, bits):
    from powers import PowerOfTwoWeight

    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantized = PowerOfTwoWeight(bits, clip=False)(weights)
    exponents = quantized.detach().abs().log2()
    assert torch.equal(exponents, exponents.round())
    assert len(exponents.unique()) == 2 ** (bits - 1)
    quantized.sum().backward()
    assert torch.equal(weights.grad, torch.ones(1000))


def test_networks_of_several_widths_take_the_quantiser(project):
    from perceptron import Perceptron
    from powers import PowersOfTwo

    net = switchable(lambda width: Perceptron(PowersOfTwo(width)), ("FP", "4", "2"))
    assert {type(module).__name__ for module in net.modules()} >= {"Switchable", "PowerOfTwoWeight"}


def test_a_quantiser_that_would_not_be_switched_is_refused(project):
    from perceptron import Perceptron

    class Rounded(torch.nn.Module):
        def __init__(self, bits: int | None) -> None:
            super().__init__()
            self.bits = bits

        def forward(self, x):
            return x

    class Rounding:
        topology = "fp"

        def __init__(self, bits: str) -> None:
            self.bits = Precision.parse(bits).weights

        def weight(self) -> torch.nn.Module:
            return Rounded(self.bits)

        activation = weight

    with pytest.raises(ValueError, match="differs between widths: derive Rounded from"):
        switchable(lambda width: Perceptron(Rounding(width)), ("4", "2"))


def test_a_data_set_of_one_s_own(command, project, store):
    bundle = load_digits()
    images = (bundle.images.repeat(3, 1).repeat(3, 2) * 15).astype(np.uint8)[:, None]
    np.savez(project / "own.npz", images=images, labels=bundle.target)
    assert (
        command("attack", "data=arrays", "data.root=own.npz", "model=perceptron", "model.net.inputs=576", *QUICK) == 0
    )
    (params,) = attack_params(store)
    assert (params["data"], params["data.test"]) == ("arrays", "200")


def test_a_data_file_of_something_else_is_one_line(command, project, capsys):
    (project / "bad.npz").write_text("no arrays")
    assert command("attack", "data=arrays", "data.root=bad.npz", *QUICK) == 1
    assert "error: data.root=bad.npz must be an .npz file with images and labels" in capsys.readouterr().err


def test_images_of_another_shape_are_one_line_though_no_paper_used_the_model(command, project, capsys):
    with (project / "perceptron.py").open("a") as file:
        file.write("\n\nPerceptron.input_shape = (1, 32, 32)\n")
    assert command("attack", "model=perceptron", *QUICK) == 1
    assert capsys.readouterr().err.strip().endswith("choose another model or data set")


def test_a_network_trained_elsewhere_is_stored_and_attacked(command, project, store, capsys):
    subprocess.run([sys.executable, "store.py", "stored"], check=True, capture_output=True)
    assert command("attack", "-m", "model=own_network", "network=stored", "attack=fgsm,momentum", *QUICK) == 0
    assert runs_of(store, "train") == []
    assert {params["network"] for params in attack_params(store)} == {
        read_description(project / "stored")["fingerprint"]
    }
    assert command("attack", "model=own_network", "model.net.channels=8", "network=stored", *QUICK) == 1
    assert "ask for what is stored" in capsys.readouterr().err


def test_a_network_without_quantisers_says_so(command, capsys):
    assert command("attack", "model=own_network", "bits=2", *QUICK) == 1
    assert capsys.readouterr().err.strip() == "error: model=own_network is not quantised: use bits=FP"


def test_a_network_trained_by_a_sweep_gets_no_mlflow_model_that_would_run_its_code(command, project, store):
    assert command("train", "model=own_network", *(word for word in QUICK if word != "n=5")) == 0
    (run,) = runs_of(store, "train")
    assert store.search_logged_models([run.info.experiment_id]) == []
    folder = Path(store.download_artifacts(run.info.run_id, "network"))
    assert not is_own(read_description(folder))
    with pytest.raises(CheckpointError, match="describes a network that is not one of"):
        rebuild(folder)


def test_attacks_without_a_sweep(project):
    done = subprocess.run([sys.executable, "direct.py"], check=True, capture_output=True, text=True)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["fgsm", "pgd"]
