"""A frozen network computes what the network computes: up to rounding, and to rounding at a quantiser's threshold."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.freezing import _HalvingMaxPool, freeze
from qnn.layers import QuantConv2d, QuantLinear
from qnn.models import CifarConvNet, LeNet5, MnistConvNet, ResNet
from qnn.quantizers import ClipOnly, DoReFa, DoReFaActivation

BatchNorm = nn.modules.batchnorm._BatchNorm

WITHOUT_BATCH_NORM: dict[str, Callable[[], nn.Module]] = {
    "mnist FP": lambda: MnistConvNet(DoReFa("FP"), width=4),
    "mnist 1": lambda: MnistConvNet(DoReFa("1"), width=4),
    "mnist w4aFP": lambda: MnistConvNet(DoReFa("w4aFP"), width=4),
    "lenet 2": lambda: LeNet5(DoReFa("2"), extra=[20]),
    "lenet clip": lambda: LeNet5(ClipOnly("FP")),
}
UNROUNDED = {
    "resnet FP": lambda: ResNet(DoReFa("FP"), n=1),
    "resnet control": lambda: ResNet(DoReFa("FP"), n=1, topology="quantized"),
    "resnet clip": lambda: ResNet(ClipOnly("FP"), n=1),
    "cifar_a FP": lambda: CifarConvNet(DoReFa("FP"), variant="a"),
    "cifar_a clip": lambda: CifarConvNet(ClipOnly("FP"), variant="a"),
}
ROUNDED = {
    "mnist w4a12": lambda: MnistConvNet(DoReFa("w4a12"), width=4),
    "resnet 1": lambda: ResNet(DoReFa("1"), n=1),
    "resnet 4": lambda: ResNet(DoReFa("4"), n=1),
    "resnet 16": lambda: ResNet(DoReFa("16"), n=1),
    "cifar_a 1": lambda: CifarConvNet(DoReFa("1"), variant="a"),
    "cifar_a 8": lambda: CifarConvNet(DoReFa("8"), variant="a"),
}
NETS = {**WITHOUT_BATCH_NORM, **UNROUNDED, **ROUNDED}


def images(net: nn.Module, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *net.input_shape, generator=torch.Generator().manual_seed(seed))


def warmed_up(net: nn.Module, x: Tensor) -> nn.Module:
    """In training mode, with batch norms that scale, shift and have seen images."""
    for norm in (module for module in net.train().modules() if isinstance(module, BatchNorm) and module.affine):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        net(x)
    return net


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name]()
    return warmed_up(net, images(net, 8, seed=1))


def logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Of logit 3, flattened, (n, values)."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x)[:, 3].sum(), x)[0].flatten(1)


def batch_norms(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, BatchNorm)]


@pytest.mark.parametrize("name", [*WITHOUT_BATCH_NORM, *UNROUNDED])
def test_frozen_network_computes_what_the_network_computes(name: str):
    net = built(name)
    x, frozen = images(net, 16), freeze(net)
    torch.testing.assert_close(logits(frozen, x), logits(net.eval(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ROUNDED)
def test_frozen_network_differs_at_thresholds_of_its_quantizers_alone(name: str):
    """Where rounding meets a threshold, one level of one activation differs: no more than a trace of it is left."""
    net = built(name)
    x, frozen = images(net, 16), freeze(net)
    ours, theirs = logits(frozen, x), logits(net.eval(), x)
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.9
    assert ((ours - theirs).abs().amax(1) / theirs.abs().amax(1)).median() < 0.01


@pytest.mark.parametrize("name", ["resnet 1", "resnet 4", "resnet 16"])
def test_the_first_quantizer_behind_a_folded_batch_norm_gives_the_same_levels_or_the_next(name: str):
    net = built(name).eval()
    x, frozen, seen = images(net, 16), freeze(net), []
    first = next(n for n, module in net.named_modules() if isinstance(module, DoReFaActivation))
    for either in (net, frozen):
        either.get_submodule(first).register_forward_hook(lambda _, __, levels: seen.append(levels))
        logits(either, x)
    assert (seen[0] != seen[1]).float().mean() < 0.01
    assert (seen[0] - seen[1]).abs().max() * (2 ** net.get_submodule(first).bits - 1) < 1.01
    assert len(seen[0].unique()) > 1


@pytest.mark.parametrize("name", NETS)
def test_frozen_network_has_the_same_input_gradient(name: str):
    """Up to ties, in a maximum or at the end of a clip: each changes the paths through one activation."""
    net = built(name)
    x, frozen = images(net, 8), freeze(net)
    ours, theirs = gradient(frozen, x), gradient(net.eval(), x)
    assert theirs.abs().amax(1).min() > 0
    if name in ROUNDED:
        alike = torch.cosine_similarity(ours, theirs)
        assert alike.median() > 0.9
        assert alike.min() > 0.8
    else:
        error = (ours - theirs).abs().amax(1) / theirs.abs().amax(1)
        assert (error < 1e-4).sum() >= 7


@pytest.mark.parametrize("name", NETS)
def test_frozen_network_is_for_inference(name: str):
    frozen = freeze(built(name))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in frozen.modules() if isinstance(module, BatchNorm | nn.Dropout))
    quantized = [module for module in frozen.modules() if isinstance(module, QuantConv2d | QuantLinear)]
    assert quantized
    assert all(isinstance(module.weight_quantizer, nn.Identity) for module in quantized)


@pytest.mark.parametrize("name", ["mnist 1", "lenet 2", "resnet 1", "cifar_a 8"])
def test_freezing_leaves_the_original_as_it_was(name: str):
    net = built(name)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    strides = {key: tensor.stride() for key, tensor in net.state_dict().items()}
    described = repr(net)
    frozen = freeze(net)
    logits(frozen, images(net, 2))
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.zero_()
    assert repr(net) == described
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert strides == {key: tensor.stride() for key, tensor in net.state_dict().items()}


def test_frozen_weights_lie_on_the_levels():
    frozen = freeze(MnistConvNet(DoReFa("2"), width=4))
    assert set(frozen.fc0.weight.mul(3).round().unique().tolist()) <= {-3, -1, 1, 3}
    assert len(frozen.fc0.weight.unique()) <= 4


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_of_the_convolutions_is_the_one_asked_for(channels_last: bool):
    net = built("mnist 1")
    x, frozen = images(net, 16), freeze(net, channels_last=channels_last)
    convolutions = [module for module in frozen.modules() if isinstance(module, nn.Conv2d) and module.in_channels > 1]
    assert len(convolutions) == 3
    for conv in convolutions:
        assert conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert any(isinstance(module, _HalvingMaxPool) for module in frozen.modules()) == channels_last
    torch.testing.assert_close(logits(frozen, x), logits(net.eval(), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet FP", ["blocks.1.pre.0", "blocks.2.pre.0", "head.0"]),
        ("resnet control", ["blocks.1.pre.0", "blocks.2.pre.0", "head.0"]),
        ("resnet 1", ["blocks.1.pre.0", "blocks.2.pre.0", "head.0"]),
        ("cifar_a FP", []),
        ("cifar_a 8", ["classifier.1"]),
    ],
)
def test_only_batch_norms_behind_a_sum_or_a_linear_layer_are_left(name: str, left: list[str]):
    net = built(name)
    frozen = freeze(net)
    assert batch_norms(frozen) == left
    folded = set(batch_norms(net)) - set(left)
    assert folded
    assert all(isinstance(frozen.get_submodule(norm), nn.Identity) for norm in folded)


class Forked(nn.Module):
    """The output of a convolution goes into a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.norm(out) + out


class DataDependent(nn.Module):
    """torch.fx cannot follow what depends on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.norm(out) if x.mean() > 0 else out


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))


def shared_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm)


UNFOLDED = {
    "output goes elsewhere too": Forked,
    "cannot be traced": DataDependent,
    "shared convolution": shared_convolution,
    "shared batch norm": shared_batch_norm,
    "something in between": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "statistics of the batch": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "nothing before": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
}


@pytest.mark.parametrize("case", UNFOLDED)
def test_batch_norms_that_cannot_be_folded_are_left(case: str):
    torch.manual_seed(0)
    x = torch.rand(5, 3, 8, 8)
    net = warmed_up(UNFOLDED[case](), x)
    frozen = freeze(net)
    assert batch_norms(frozen) == batch_norms(net)
    torch.testing.assert_close(logits(frozen, x), logits(net.eval(), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(3, 4, 3, stride=2, bias=False),
        lambda: nn.Conv2d(3, 6, 3, groups=3, dilation=2),
        lambda: nn.Conv2d(3, 4, (1, 3), padding="same", padding_mode="reflect"),
    ],
    ids=["no bias", "groups", "reflecting"],
)
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_of_convolution_is_folded(layer: Callable[[], nn.Conv2d], affine: bool):
    torch.manual_seed(0)
    conv, x = layer(), torch.rand(5, 3, 8, 8)
    net = warmed_up(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, affine=affine, eps=0.1)), x)
    frozen = freeze(net)
    assert not batch_norms(frozen)
    torch.testing.assert_close(logits(frozen, x), logits(net.eval(), x), rtol=1e-5, atol=1e-5)


class Standardised(nn.Conv2d):
    """A convolution of one's own: what is folded into its weight is taken out again."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, centred / centred.std((1, 2, 3), keepdim=True), self.bias)


class MinPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(-x)


class Tokens(nn.Module):
    """Batch norm over the second of three axes, not over the linear layer's outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, outputs), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(1, 2)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(self.norm(self.conv(x)), self.conv.weight)


class Optional(nn.Module):
    """torch.fx hands over something for `mask`, so it follows the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.conv(x)
        return out if mask is None else mask * self.norm(out)


class NormRead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.weight.abs().mean()


STRANGERS = {
    "convolution of one's own": lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
    "pool of one's own": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), MinPool(2)),
    "pool rounding up": lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.MaxPool2d(2, ceil_mode=True)),
    "batch norm over another axis": lambda: Tokens(8),
    "batch norm over another axis of equal length": lambda: Tokens(24),
    "weight used twice": Tied,
    "optional argument": Optional,
    "weight of the batch norm used twice": NormRead,
}


@pytest.mark.parametrize("case", STRANGERS)
def test_networks_of_others_are_left_as_they_are(case: str):
    torch.manual_seed(0)
    x = torch.rand(5, 3, 8, 8)
    net = warmed_up(STRANGERS[case](), x)
    frozen = freeze(net)
    torch.testing.assert_close(logits(frozen, x), logits(net.eval(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 8), (2, 3, 6, 5), (1, 1, 2, 2), (0, 3, 4, 4)])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("nan", [True, False])
def test_halving_pool_is_max_pool(shape: tuple[int, ...], channels_last: bool, nan: bool):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if nan:
        x[:, :1, 1, :1] = torch.nan
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with torch.no_grad():
        ours, theirs = _HalvingMaxPool(2)(x), nn.MaxPool2d(2)(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert ours.isnan().any() == (nan and len(x) > 0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_halving_pool_has_the_gradient_of_max_pool(channels_last: bool):
    """Also where values tie: the first of them gets it."""
    x = torch.randint(0, 3, (2, 3, 6, 8), generator=torch.Generator().manual_seed(0)).float()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x.requires_grad_()
    upstream = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(pool(x), x, upstream)[0] for pool in (_HalvingMaxPool(2), nn.MaxPool2d(2)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("pool", "replaced"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), stride=(2, 2)), True),
        (nn.MaxPool2d(3), False),
        (nn.MaxPool2d(2, stride=1), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.MaxPool2d((2, 1)), False),
    ],
    ids=repr,
)
def test_only_pools_that_halve_are_replaced(pool: nn.MaxPool2d, replaced: bool):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), pool)
    x, frozen = torch.rand(2, 3, 8, 8), freeze(net)
    assert isinstance(frozen[1], _HalvingMaxPool) == replaced
    torch.testing.assert_close(logits(frozen, x), logits(net, x))


def test_compiled_copy_is_made_of_the_frozen_one(monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: compiled.append(net) or net)
    frozen = freeze(built("resnet 1"), compile=True)
    assert compiled == [frozen]
    assert "stem.1" not in batch_norms(frozen)
