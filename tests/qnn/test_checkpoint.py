import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qnn.checkpoint import (
    DESCRIPTION,
    WEIGHTS,
    CheckpointError,
    load_weights,
    read_description,
    rebuild,
    save_network,
)
from qnn.models import LeNet5, MnistConvNet, ResNet
from qnn.quantizers import ClipOnly, DoReFa


def describe(target: str = "qnn.models.MnistConvNet", bits: str = "w1a4", quantizer: str = "dorefa", **net) -> dict:
    return {
        "net": {"_target_": target, **(net or {"width": 4})},
        "bits": bits,
        "quantizer": quantizer,
        "classes": [str(i) for i in range(10)],
    }


def mnist_net(seed: int = 0, width: int = 4, bits: str = "w1a4") -> nn.Module:
    torch.manual_seed(seed)
    return MnistConvNet(DoReFa(bits), width=width)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_network(tmp_path / "net", mnist_net(), describe())
    return tmp_path / "net"


def test_weights_survive_a_round_trip_bit_for_bit(stored: Path):
    other = mnist_net(seed=1)
    assert not same_state(other, mnist_net())
    assert load_weights(other, stored) is other
    assert same_state(other, mnist_net())


def test_description_survives_a_round_trip(stored: Path):
    assert read_description(stored) == describe()


@pytest.mark.parametrize(
    ("net", "description"),
    [
        (lambda: mnist_net(), describe()),
        (lambda: LeNet5(ClipOnly("FP"), extra=[20]), describe("qnn.models.LeNet5", "FP", "clip_only", extra=[20])),
        (lambda: ResNet(DoReFa("2"), n=1), describe("qnn.models.ResNet", "2", n=1)),
        (
            lambda: ResNet(DoReFa("FP"), n=1, topology="quantized"),
            describe("qnn.models.ResNet", "FP", n=1, topology="quantized"),
        ),
    ],
    ids=["mnist", "lenet clip", "resnet", "resnet control"],
)
def test_rebuilt_network_computes_the_same(tmp_path: Path, net, description: dict):
    original = net()
    images = torch.rand(4, *original.input_shape)
    with torch.no_grad():
        original.train()(images)
        save_network(tmp_path, original, description)
        again = rebuild(tmp_path)
        assert not again.training
        assert same_state(original, again)
        assert torch.equal(original.eval()(images), again(images))


def test_channels_last_weights_are_stored_as_they_are(tmp_path: Path):
    save_network(tmp_path, mnist_net().to(memory_format=torch.channels_last), describe())
    assert same_state(rebuild(tmp_path), mnist_net())


@pytest.mark.parametrize("missing", [WEIGHTS, DESCRIPTION])
def test_missing_file_is_named(stored: Path, missing: str):
    (stored / missing).unlink()
    with pytest.raises(CheckpointError, match=f"holds no stored network: {missing} is missing"):
        rebuild(stored)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_cut_short_are_refused(stored: Path, keep: int):
    path = stored / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        load_weights(mnist_net(), stored)


@pytest.mark.parametrize("text", ["", "{", '["list"]', "\x00"])
def test_damaged_description_is_refused(stored: Path, text: str):
    (stored / DESCRIPTION).write_text(text)
    with pytest.raises(CheckpointError, match=r"network\.json"):
        rebuild(stored)


def test_weights_of_another_network_are_refused_and_not_loaded(stored: Path):
    wider = mnist_net(width=8)
    before = mnist_net(width=8)
    with pytest.raises(CheckpointError, match=r"it differs in fc0\.weight, features\.0\.bias, "):
        load_weights(wider, stored)
    assert same_state(wider, before)


@pytest.mark.parametrize("change", ["absent", "odd"])
def test_absent_and_odd_tensors_are_named(stored: Path, change: str):
    state = dict(mnist_net().state_dict())
    if change == "absent":
        del state["linear.bias"]
    else:
        state["odd"] = torch.zeros(1)
    save_file(state, stored / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"differs in (linear\.bias|odd)$"):
        load_weights(mnist_net(), stored)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.nn.Linear",
        "qnn.models.resnet.ResNet",
        "qnn.models.building.he_normal_",
        "qnn.models.__loader__",
        "qnn.models.",
        "ResNet",
        "",
    ],
)
def test_only_networks_of_this_package_are_rebuilt(stored: Path, target: str):
    (stored / DESCRIPTION).write_text(json.dumps(describe(target)))
    with pytest.raises(CheckpointError, match="not one of CifarConvNet, LeNet5, MnistConvNet, ResNet"):
        rebuild(stored)


def test_unknown_quantizer_is_refused(stored: Path):
    (stored / DESCRIPTION).write_text(json.dumps(describe(quantizer="os.system")))
    with pytest.raises(CheckpointError, match="not one of"):
        rebuild(stored)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": None},
        {"bits": "99"},
        {"classes": None},
        {"classes": 10},
        {"net": None},
        {"net": "MnistConvNet"},
        {"net": {"_target_": "qnn.models.MnistConvNet", "widht": 4}},
        {"quantizer": ["dorefa"]},
    ],
    ids=["no bits", "bad bits", "no classes", "classes not a list", "no net", "net not a mapping", "typo", "list"],
)
def test_incomplete_or_wrong_description_is_refused(stored: Path, change: dict):
    changed = {key: value for key, value in {**describe(), **change}.items() if value is not None}
    (stored / DESCRIPTION).write_text(json.dumps(changed))
    with pytest.raises(CheckpointError):
        rebuild(stored)
