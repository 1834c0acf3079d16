import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qnn.checkpoint import (
    DESCRIPTION,
    WEIGHTS,
    CheckpointError,
    load_weights,
    read_description,
    rebuild,
    save_network,
    save_packed,
)
from qnn.freezing import freeze
from qnn.layers import quantized_layers
from qnn.models import CifarConvNet, LeNet5, MnistConvNet, ResNet
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
    weights = sha256((stored / WEIGHTS).read_bytes()).hexdigest()
    assert read_description(stored) == {"fingerprint": weights[:16], **describe()}


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
    with pytest.raises(CheckpointError, match="not one of VGG, CifarConvNet, ImageNetResNet, LeNet5"):
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


def packable(target: str, bits: str, quantizer: str = "dorefa", **net) -> tuple[nn.Module, dict]:
    """A network with batch norms that have seen images, and its description."""
    torch.manual_seed(0)
    kind = {"dorefa": DoReFa, "clip_only": ClipOnly}[quantizer](bits)
    made = {"MnistConvNet": MnistConvNet, "LeNet5": LeNet5, "ResNet": ResNet, "CifarConvNet": CifarConvNet}[target](
        kind, **net
    )
    with torch.no_grad():
        made.train()(torch.rand(8, *made.input_shape))
    return made.eval(), describe(f"qnn.models.{target}", bits, quantizer, **net)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict]]] = {
    **{
        f"mnist {bits}": lambda bits=bits: packable("MnistConvNet", bits, width=5)
        for bits in ("FP", "1", "2", "3", "4", "8", "12", "16", "w1a4", "w12a2", "wFPa4", "w1aFP")
    },
    "mnist clip": lambda: packable("MnistConvNet", "FP", "clip_only", width=5),
    "lenet 3": lambda: packable("LeNet5", "3", extra=[20]),
    "resnet 2": lambda: packable("ResNet", "2", n=1),
    "resnet clip": lambda: packable("ResNet", "FP", "clip_only", n=1),
    "resnet control": lambda: packable("ResNet", "FP", n=1, topology="quantized"),
    "cifar 1": lambda: packable("CifarConvNet", "1", variant="a"),
}


def bits_of(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().view(np.int32)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_packed_network_computes_the_same_bit_for_bit(tmp_path: Path, name: str):
    net, description = NETWORKS[name]()
    images = torch.rand(16, *net.input_shape)
    save_packed(tmp_path, net, description)
    again = rebuild(tmp_path)
    assert not again.training
    layers = dict(quantized_layers(again))
    for layer_name, layer in quantized_layers(net):
        loaded = layers[layer_name]
        assert isinstance(loaded.weight_quantizer, nn.Identity)
        np.testing.assert_array_equal(bits_of(loaded.weight), bits_of(layer.weight_quantizer(layer.weight)))
    quantized = {f"{layer_name}.weight" for layer_name in layers}
    states = net.state_dict(), again.state_dict()
    assert all(torch.equal(*(state[n] for state in states)) for n in states[0] if n not in quantized)
    np.testing.assert_array_equal(bits_of(again(images)), bits_of(net(images)))
    np.testing.assert_array_equal(bits_of(freeze(again)(images)), bits_of(freeze(net)(images)))


def test_packing_leaves_the_network_as_it_was(tmp_path: Path):
    net = mnist_net()
    save_packed(tmp_path, net, describe())
    assert same_state(net, mnist_net())
    assert not any(isinstance(layer.weight_quantizer, nn.Identity) for _, layer in quantized_layers(net))


@pytest.mark.parametrize("bits", ["1", "2", "3", "4", "8", "12", "16", "w2a16"])
def test_packed_size_is_that_of_the_codes(tmp_path: Path, bits: str):
    sizes = {}
    for save in (save_network, save_packed):
        save(tmp_path / save.__name__, mnist_net(width=16, bits=bits), describe(bits=bits))
        sizes[save] = (tmp_path / save.__name__ / WEIGHTS).stat().st_size
    share = DoReFa(bits).precision.weights / 32
    # the first and the last layer, the biases and the names stay what they are: 2 % of this network
    assert share < sizes[save_packed] / sizes[save_network] < share + 0.02


def test_packed_description_says_what_is_packed_and_its_digest(tmp_path: Path):
    save_packed(tmp_path, mnist_net(), describe())
    described = read_description(tmp_path)
    assert described["packed"]["fc0.weight"] == {"bits": 1, "shape": [512, 196]}
    assert len(described["packed"]) == 4
    assert described["sha256"] == sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert describe().items() <= described.items()
    stored = load_file(tmp_path / WEIGHTS)
    assert stored["fc0.weight.codes"].shape == (512 * 196 // 8,)
    assert "fc0.weight" not in stored


def test_packing_the_same_network_again_gives_the_same_files(tmp_path: Path):
    for folder in ("one", "other"):
        save_packed(tmp_path / folder, mnist_net(), describe())
    for file in (WEIGHTS, DESCRIPTION):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    save_packed(tmp_path / "net", mnist_net(), describe())
    return tmp_path / "net"


def redescribe(folder: Path, **changes) -> None:
    described = {**read_description(folder), **changes}
    (folder / DESCRIPTION).write_text(json.dumps({k: v for k, v in described.items() if v is not None}))


def refill(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the stored tensors, and the digest with them."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    redescribe(folder, sha256=sha256((folder / WEIGHTS).read_bytes()).hexdigest())


@pytest.mark.parametrize("position", [0, 9, 1000, -1])
def test_one_changed_byte_of_a_packed_network_is_noticed(packed: Path, position: int):
    raw = bytearray((packed / WEIGHTS).read_bytes())
    raw[position] ^= 1
    (packed / WEIGHTS).write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        rebuild(packed)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_packed_weights_cut_short_are_refused(packed: Path, keep: int):
    (packed / WEIGHTS).write_bytes((packed / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        rebuild(packed)


@pytest.mark.parametrize("digest", [None, "", 3, "0" * 64], ids=["absent", "empty", "number", "wrong"])
def test_packed_network_without_its_digest_is_refused(packed: Path, digest):
    redescribe(packed, sha256=digest)
    with pytest.raises(CheckpointError, match="its SHA-256 is not the one"):
        rebuild(packed)


def test_file_that_is_no_safetensors_is_refused_whatever_its_digest(packed: Path):
    (packed / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
    redescribe(packed, sha256=sha256((packed / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        rebuild(packed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("fc0.weight.codes"), "fc0.weight.codes"),
        (lambda state: state.pop("fc0.weight.scale"), "fc0.weight.scale"),
        (lambda state: state.update({"fc0.weight.codes": state["fc0.weight.codes"][1:].clone()}), "fc0.weight.codes"),
        (lambda state: state.update({"fc0.weight.codes": state["fc0.weight.codes"].float()}), "fc0.weight.codes"),
        (lambda state: state.update({"fc0.weight.codes": state["fc0.weight.codes"][None].clone()}), "fc0.weight.codes"),
        (lambda state: state.update({"fc0.weight.scale": torch.ones(1)}), "fc0.weight.scale"),
        (lambda state: state.update({"odd": torch.ones(1)}), "odd"),
        (lambda state: state.update({"linear.bias": state["linear.bias"].double()}), "linear.bias"),
    ],
    ids=["no codes", "no scale", "short", "floats", "two axes", "scale of one axis", "odd", "doubles"],
)
def test_other_packed_tensors_are_named(packed: Path, change, named: str):
    refill(packed, change)
    with pytest.raises(CheckpointError, match=rf"it differs in {named}$"):
        rebuild(packed)


@pytest.mark.parametrize("listed", [3, [], {}, {"fc0.weight": {"bits": 1, "shape": [196, 512]}}, None])
def test_description_of_other_packed_weights_is_refused(packed: Path, listed):
    redescribe(packed, packed=listed)
    with pytest.raises(CheckpointError, match=r"differs in|names other packed weights"):
        rebuild(packed)


def test_packed_weights_of_another_width_are_refused_and_not_loaded(packed: Path):
    other = mnist_net(bits="2")
    with pytest.raises(CheckpointError, match=r"it differs in fc0\.weight\.codes"):
        load_weights(other, packed)
    assert same_state(other, mnist_net(bits="2"))
    assert not any(isinstance(layer.weight_quantizer, nn.Identity) for _, layer in quantized_layers(other))


def test_unpacked_weights_described_as_packed_are_refused(stored: Path):
    redescribe(stored, packed={}, sha256=sha256((stored / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match=r"it differs in fc0\.weight, fc0\.weight\.codes"):
        rebuild(stored)
