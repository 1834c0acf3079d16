from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.freezing import freeze
from qnn.layers import QuantConv2d, QuantLinear
from qnn.models import CifarConvNet, LeNet5, MnistConvNet, ResNet
from qnn.quantizers import ClipOnly, DoReFa, DoReFaWeight

NETS: dict[str, Callable[[], nn.Module]] = {
    "mnist FP": lambda: MnistConvNet(DoReFa("FP"), width=4),
    "mnist 1": lambda: MnistConvNet(DoReFa("1"), width=4),
    "mnist w4a12": lambda: MnistConvNet(DoReFa("w4a12"), width=4),
    "lenet 2": lambda: LeNet5(DoReFa("2"), extra=[20]),
    "lenet clip": lambda: LeNet5(ClipOnly("FP")),
    "resnet 1": lambda: ResNet(DoReFa("1"), n=1),
    "resnet 16": lambda: ResNet(DoReFa("16"), n=1),
    "cifar_a 8": lambda: CifarConvNet(DoReFa("8"), variant="a"),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A network in training mode whose batch norms have seen images."""
    torch.manual_seed(0)
    net = NETS[request.param]().train()
    with torch.no_grad():
        net(images(net, 8, seed=1))
    return net


def images(net: nn.Module, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *net.input_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [1, 3])
def test_layers_compute_with_the_quantized_weight(bits: int):
    quantizer = DoReFaWeight(bits)
    conv = QuantConv2d(2, 3, 3, stride=2, padding=1, weight_quantizer=quantizer)
    linear = QuantLinear(6, 4, weight_quantizer=quantizer)
    x, v = torch.rand(2, 2, 8, 8), torch.rand(5, 6)
    assert torch.equal(conv(x), F.conv2d(x, quantizer(conv.weight), conv.bias, stride=2, padding=1))
    assert torch.equal(linear(v), F.linear(v, quantizer(linear.weight), linear.bias))


def test_frozen_network_computes_what_the_network_computes(net: nn.Module):
    x = images(net, 6)
    frozen = freeze(net)
    with torch.no_grad():
        assert torch.equal(frozen(x), net.eval()(x))


def test_frozen_network_has_the_same_input_gradient(net: nn.Module):
    frozen, gradients = freeze(net), []
    for either in (frozen, net.eval()):
        x = images(net, 2).requires_grad_()
        gradients.append(torch.autograd.grad(either(x)[:, 3].sum(), x)[0])
    assert torch.equal(*gradients)


def test_frozen_network_is_for_inference(net: nn.Module):
    frozen = freeze(net)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in frozen.modules() if not isinstance(module, nn.Identity))


def test_freezing_leaves_the_original_as_it_was(net: nn.Module):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    described = repr(net)
    frozen = freeze(net)
    with torch.no_grad():
        frozen(images(net, 2))
        for parameter in frozen.parameters():
            parameter.zero_()
    assert repr(net) == described
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_frozen_weights_lie_on_the_levels():
    frozen = freeze(MnistConvNet(DoReFa("2"), width=4))
    assert set(frozen.fc0.weight.mul(3).round().unique().tolist()) <= {-3, -1, 1, 3}
    assert len(frozen.fc0.weight.unique()) <= 4
