import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.layers import QuantConv2d, QuantLinear
from qnn.models import VGG, CifarConvNet, ImageNetResNet, LeNet5, MnistConvNet, ResNet
from qnn.quantizers import ClipOnly, DoReFa, Quantizer
from qnn.switchable import switchable, widths_of
from qnn.uniform import Uniform

SETTINGS: dict[str, tuple[type[nn.Module], dict]] = {
    "mnist_a": (MnistConvNet, {"width": 16}),
    "mnist_b": (MnistConvNet, {"width": 32}),
    "mnist_c": (MnistConvNet, {"width": 64}),
    "lenet5_a": (LeNet5, {}),
    "lenet5_b": (LeNet5, {"extra": [500]}),
    "lenet5_c": (LeNet5, {"extra": [500, 500]}),
    "cifar_a": (CifarConvNet, {"variant": "a"}),
    "cifar_b": (CifarConvNet, {"variant": "b"}),
    "cifar_c": (CifarConvNet, {"variant": "c"}),
    "resnet20": (ResNet, {"n": 3}),
    "resnet32": (ResNet, {"n": 5}),
    "resnet44": (ResNet, {"n": 7}),
    "vgg11": (VGG, {"depth": 11}),
    "vgg16": (VGG, {"depth": 16}),
    "resnet34": (ImageNetResNet, {"depth": 34}),
}
FULL = {
    "mnist_a": 414_170,
    "mnist_b": 836_522,
    "mnist_c": 1_722_698,
    "lenet5_a": 61_706,
    "lenet5_b": 274_206,
    "lenet5_c": 524_706,
    "cifar_a": 4_495_306,
    "cifar_b": 9_006_410,
    "cifar_c": 2_431_434,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
}
ONE_TOPOLOGY = {  # networks whose layers are the same at every width
    "vgg11": 9_228_362,
    "vgg16": 14_724_042,
    "resnet34": 21_797_672,
}
QUANTIZED = {name: FULL[name] for name in FULL if not name.startswith(("cifar", "resnet"))} | {
    "cifar_a": 4_498_314,
    "resnet20": 270_394,
    "resnet32": 465_274,
    "resnet44": 660_154,
}
QUANTIZED_WEIGHTS = {
    "mnist_a": 408_320,
    "mnist_b": 830_464,
    "mnist_c": 1_716_224,
    "resnet20": 267_264,
    "resnet32": 460_800,
    "resnet44": 654_336,
}
STAGES = {  # width and side of what the first three stages give
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet44": [(16, 32), (32, 16), (64, 8)],
    "vgg11": [(64, 16), (128, 8), (256, 4)],
    "vgg16": [(64, 16), (128, 8), (256, 4)],
    "resnet34": [(64, 16), (128, 8), (256, 4)],
}
SMALL = pytest.mark.parametrize("name", ["mnist_a", "lenet5_c", "cifar_a", "resnet20"])


def build(name: str, quantizer: Quantizer, **more) -> nn.Module:
    kind, settings = SETTINGS[name]
    torch.manual_seed(0)
    return kind(quantizer, **settings, **more)


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def layers(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def images(net: nn.Module, count: int) -> Tensor:
    return torch.rand(count, *(side or 64 for side in net.input_shape), generator=torch.Generator().manual_seed(0))


def inputs_of(net: nn.Module, modules: list[nn.Module]) -> list[Tensor]:
    """What reaches each of `modules` in a forward pass over eight images."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].detach()})) for m in modules]
    with torch.no_grad():
        net.train()(images(net, 8))
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


def outputs_of(net: nn.Module, modules: list[nn.Module]) -> list[Tensor]:
    """What each of `modules` gives for one image."""
    seen: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: seen.update({m: out})) for m in modules]
    with torch.no_grad():
        net(images(net, 1))
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


@pytest.mark.parametrize("name", FULL)
def test_size_at_full_precision(name: str):
    assert size(build(name, DoReFa("FP"))) == FULL[name]


@pytest.mark.parametrize("name", QUANTIZED)
def test_size_of_the_quantized_network(name: str):
    assert size(build(name, DoReFa("1"))) == QUANTIZED[name]


@pytest.mark.parametrize("name", QUANTIZED_WEIGHTS)
def test_number_of_quantized_weights(name: str):
    net = build(name, DoReFa("4"))
    assert (
        sum(m.weight.numel() for m in net.modules() if isinstance(m, QuantConv2d | QuantLinear))
        == (QUANTIZED_WEIGHTS[name])
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("bits", ["FP", "2"])
def test_first_and_last_layer_are_plain_and_all_others_quantized(name: str, bits: str):
    first, *hidden, last = layers(build(name, DoReFa(bits)))
    assert type(first) is nn.Conv2d
    assert type(last) is nn.Linear
    assert all(isinstance(layer, QuantConv2d | QuantLinear) for layer in hidden)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("bits", ["FP", "1"])
def test_logits_have_the_shape_promised(name: str, bits: str):
    net = build(name, DoReFa(bits), classes=7).eval()
    with torch.no_grad():
        logits = net(images(net, 2))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@SMALL
def test_full_precision_network_holds_no_quantizer(name: str):
    names = {type(module).__name__ for module in build(name, DoReFa("FP")).modules()}
    assert not {part for part in names if part.startswith(("DoReFa", "Clip"))}


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("quantizer", [DoReFa("FP"), ClipOnly("FP")], ids=["unclipped", "clip_only"])
def test_control_networks_have_the_quantized_size(name: str, quantizer: Quantizer):
    assert size(build(name, quantizer, topology="quantized")) == QUANTIZED[name]


@SMALL
def test_fp_topology_takes_no_quantizer(name: str):
    assert size(build(name, DoReFa("FP"), topology="fp")) == FULL[name]
    for quantizer in (DoReFa("1"), DoReFa("wFPa8"), ClipOnly("FP")):
        with pytest.raises(ValueError, match="topology=fp"):
            build(name, quantizer, topology="fp")


@SMALL
def test_unknown_topology_is_refused(name: str):
    with pytest.raises(ValueError, match="topology=dense is unknown"):
        build(name, DoReFa("FP"), topology="dense")


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant=d is unknown"):
        CifarConvNet(DoReFa("FP"), variant="d")


def is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def test_one_bit_resnet_quantizes_only_the_input_of_second_convolutions():
    net = build("resnet20", DoReFa("1"))
    first = inputs_of(net, [block.conv1 for block in net.blocks])
    second = inputs_of(net, [block.conv2 for block in net.blocks])
    assert all(is_binary(values) and 0 < values.mean() < 1 for values in second)
    assert is_binary(first[0])
    assert not any(is_binary(values) for values in first[1:])


def test_quantized_resnet_adds_quantized_branches_to_the_skip_path():
    net = build("resnet20", DoReFa("1"))
    sums = inputs_of(net, list(net.blocks)[1:3])
    assert set(sums[0].unique().tolist()) == {0, 1, 2}
    assert set(sums[1].unique().tolist()) == {0, 1, 2, 3}


def test_resnet_shortcuts_pass_the_input_on_or_pool_and_pad_it():
    net = build("resnet20", DoReFa("FP")).eval()
    for block in net.blocks:
        nn.init.zeros_(block.conv2.weight)
    stem, *_ = sums = inputs_of(net, list(net.blocks))
    assert stem.shape == (8, 16, 32, 32)
    assert torch.equal(sums[3], stem)
    assert torch.equal(sums[4][:, 8:24], F.avg_pool2d(stem, 2))
    assert sums[4].shape == (8, 32, 16, 16)
    assert not sums[4][:, :8].any()
    assert not sums[4][:, 24:].any()
    assert torch.equal(sums[7][:, 16:48], F.avg_pool2d(sums[6], 2))


@pytest.mark.parametrize("name", ["mnist_a", "lenet5_c"])
def test_one_bit_network_feeds_bits_to_its_quantized_layers(name: str):
    net = build(name, DoReFa("1"))
    _, *hidden, last = layers(net)
    assert all(is_binary(values) for values in inputs_of(net, hidden))
    assert not is_binary(inputs_of(net, [last])[0])


def test_one_bit_cifar_convnet_feeds_bits_to_its_quantized_layers():
    net = build("cifar_a", DoReFa("1"))
    _, *hidden, fc1, last = layers(net)
    assert all(is_binary(values) for values in inputs_of(net, hidden))
    assert set(inputs_of(net, [fc1])[0].unique().tolist()) <= {0, 2}, "dropout scales what it keeps by 2"
    assert not is_binary(inputs_of(net, [last])[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_network_can_have_several_widths(name: str):
    with torch.device("meta"):
        net = switchable(lambda width: build(name, Uniform(width)), ("FP", "w4aFP", "4", "2"))
    assert widths_of(net) == ("FP", "w4aFP", "4", "2")


def test_full_precision_cifar_convnets_of_before_there_were_several_widths_load():
    kept = {key.rpartition(".")[0] for key in build("cifar_a", DoReFa("FP")).state_dict()}
    assert kept == {
        *(f"features.{place}" for place in (0, 1, 3, 4, 7, 8, 10, 11, 14, 15, 17, 18)),
        *(f"classifier.{place}" for place in (0, 3, 5)),
    }


class Halving:
    """A quantiser of no project: every weight and every activation is halved."""

    topology = "fp"

    def weight(self) -> nn.Module:
        return Half()

    def activation(self) -> nn.Module:
        return Half()


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize("name", ONE_TOPOLOGY)
@pytest.mark.parametrize("quantizer", [DoReFa("FP"), DoReFa("1"), DoReFa("wFPa8"), ClipOnly("FP"), Halving()])
def test_networks_of_one_topology_have_the_same_layers_at_every_width(name: str, quantizer: Quantizer):
    net, full = build(name, quantizer), build(name, DoReFa("FP"))
    assert size(net) == ONE_TOPOLOGY[name]
    assert [place for place, _ in net.named_modules()] == [place for place, _ in full.named_modules()]
    assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", ONE_TOPOLOGY)
def test_quantizers_are_all_that_bits_add_to_a_network_of_one_topology(name: str):
    net, full = build(name, DoReFa("2")).eval(), build(name, DoReFa("FP")).eval()
    assert not torch.equal(net(images(net, 1)), full(images(net, 1)))
    for place, module in list(net.named_modules()):
        if type(module).__name__.startswith("DoReFa"):
            net.set_submodule(place, nn.Identity())
    assert torch.equal(net(images(net, 1)), full(images(net, 1)))


@pytest.mark.parametrize("name", ONE_TOPOLOGY)
def test_one_bit_network_of_one_topology_feeds_bits_to_its_quantized_layers(name: str):
    net = build(name, DoReFa("1"))
    _, *hidden, last = layers(net)
    assert all(is_binary(values) for values in inputs_of(net, hidden))
    assert not is_binary(inputs_of(net, [last])[0])


@pytest.mark.parametrize("kind", [VGG, ImageNetResNet])
def test_unknown_depth_is_refused(kind: type[nn.Module]):
    with pytest.raises(ValueError, match="depth=20 is unknown: use one of"):
        kind(DoReFa("FP"), depth=20)


def test_imagenet_resnet_at_full_precision_is_the_published_one():
    assert size(ImageNetResNet(DoReFa("FP"), depth=18)) == 11_689_512
    net = build("resnet34", DoReFa("FP")).eval()
    block, x = net.stages[1][0], torch.rand(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    between = F.relu(block.between[0](F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    shortcut = block.shortcut[1](F.conv2d(x, block.shortcut[0].weight, stride=2))
    expected = F.relu(block.norm(F.conv2d(between, block.conv2.weight, padding=1)) + shortcut)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("side", [33, 64, 97])
def test_imagenet_resnet_takes_images_of_any_size(side: int):
    net = ImageNetResNet(DoReFa("4"), depth=18, classes=3).eval()
    assert net(torch.rand(1, 3, side, side)).shape == (1, 3)


@pytest.mark.parametrize("name", STAGES)
def test_stage_ends_are_the_last_modules_of_the_first_three_stages(name: str):
    net = build(name, DoReFa("2")).eval()
    sequence = list(net.blocks if name in FULL else net.stages)
    ends = [sequence.index(net.get_submodule(end)) for end in net.stage_ends]
    shapes = [tuple(values.shape[1:]) for values in outputs_of(net, sequence)]
    assert [shapes[end] for end in ends] == [(width, side, side) for width, side in STAGES[name]]
    assert all(shapes[end] != after for end in ends for after in shapes[end + 1 : end + 2])
