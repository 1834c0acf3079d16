import copy

import pytest
import torch
from torch import nn

from qnn.models import MnistConvNet, ResNet
from qnn.quantizers import DoReFa
from qnn.switchable import (
    MeanProbability,
    RandomWidth,
    Switchable,
    add_width,
    at_every_width,
    at_width,
    nearest_higher,
    set_width,
    switchable,
    widths_of,
)
from qnn.uniform import Uniform

WIDTHS = ("FP", "8", "2")


def build(width: str) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(Uniform(width), n=1)


def images(n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A few steps at each width, so that ranges and statistics are not those of an untrained network."""
    net = switchable(build, WIDTHS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(6):
        set_width(net, WIDTHS[step % 3])
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images(16, step)), torch.arange(16) % 10).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("width", WIDTHS)
def test_an_untrained_network_computes_what_a_network_of_that_width_computes(width):
    net, alone = switchable(build, WIDTHS), build(width)
    set_width(net, width)
    assert torch.equal(net(images()), alone(images()))


def test_weights_are_shared_and_norms_are_not(trained):
    kinds = {type(module.by_width["2"]).__name__ for module in trained.modules() if isinstance(module, Switchable)}
    assert kinds == {"UniformWeight", "UniformActivation", "BatchNorm2d"}
    alone = sum(p.numel() for p in build("2").parameters())
    norms = sum(p.numel() for m in build("2").modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(p.numel() for p in trained.parameters()) == alone + 2 * norms


def test_shared_norms_are_one_for_all_widths():
    net = switchable(build, WIDTHS, norms="shared")
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in build("2").parameters())


def test_training_at_one_width_leaves_the_norms_of_the_others_alone(trained):
    net = copy.deepcopy(trained).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    set_width(net, "8")
    net(images())
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".by_width.8." in name for name in changed)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_copy_at_one_width_computes_the_same_and_cannot_switch(trained, width):
    set_width(trained, width)
    alone = at_width(trained, width)
    assert torch.equal(alone(images()), trained(images()))
    assert widths_of(alone) == ()
    assert alone.state_dict().keys() == build(width).state_dict().keys()


def test_widths_differ(trained):
    logits = [at_width(trained, width)(images()) for width in WIDTHS]
    assert not torch.allclose(logits[0], logits[2])


def test_a_width_that_is_not_there_is_refused(trained):
    with pytest.raises(ValueError, match="runs at FP, 8, 2, not at 4"):
        set_width(trained, "4")
    with pytest.raises(ValueError, match="one width only"):
        set_width(build("4"), "4")


def test_an_untrained_width_is_measured_anew_and_leaves_the_others_alone(trained):
    net = copy.deepcopy(trained)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    add_width(net, "3", build, images(64).split(16))
    after = net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert widths_of(net) == (*WIDTHS, "3")
    norm = next(m for m in net.modules() if isinstance(m, Switchable) and isinstance(m.by_width["3"], nn.BatchNorm2d))
    assert torch.equal(norm.by_width["3"].weight, norm.by_width["8"].weight)
    assert not torch.equal(norm.by_width["3"].running_mean, norm.by_width["8"].running_mean)
    assert not net.training
    assert torch.isfinite(net(images())).all()


def test_the_nearest_higher_width():
    assert nearest_higher(("FP", "8", "5", "2"), "3") == "5"
    assert nearest_higher(("FP", "8"), "12") == "FP"
    with pytest.raises(ValueError, match="no trained width is above 8"):
        nearest_higher(("4", "2"), "8")


def test_networks_whose_layers_differ_by_width_are_refused():
    with pytest.raises(ValueError, match="different layers"):
        switchable(lambda width: ResNet(DoReFa(width), n=1), ("FP", "2"))
    switchable(lambda width: MnistConvNet(DoReFa(width), width=4), ("FP", "2"))


def test_no_width_is_refused():
    with pytest.raises(ValueError, match="at least one width"):
        switchable(build, ())


def test_the_mean_of_probabilities(trained):
    nets = [at_width(trained, width) for width in WIDTHS]
    expected = torch.stack([net(images()).softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(MeanProbability(nets)(images()).softmax(1), expected)
    torch.testing.assert_close(MeanProbability(nets[:1])(images()).softmax(1), nets[0](images()).softmax(1))


def test_each_image_is_classified_by_one_network_drawn_for_it(trained):
    nets = [at_width(trained, width) for width in WIDTHS]
    x = images(200)
    candidates = torch.stack([net(x) for net in nets])
    drawn = (RandomWidth(nets, seed=0)(x) - candidates).abs().amax(2) < 1e-5
    assert (drawn.sum(0) == 1).all()
    assert (drawn.sum(1) > 40).all()
    assert torch.equal(RandomWidth(nets, seed=3)(x), RandomWidth(nets, seed=3)(x))


def test_widths_are_drawn_anew_at_every_call_and_gradients_pass(trained):
    net = RandomWidth([at_width(trained, width) for width in WIDTHS], seed=0)
    x = images(50).requires_grad_()
    assert not torch.equal(net(x), net(x))
    net(x).sum().backward()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()
    assert net(images(0)).shape == (0, 10)


@pytest.mark.parametrize("norms", ["switchable", "shared"])
def test_every_width_begins_as_the_network_of_one_width(trained, norms):
    start = at_width(trained, "FP")
    net = switchable(build, WIDTHS, norms=norms)
    odd = net.load_state_dict(at_every_width(net, start.state_dict()), strict=False)
    assert not odd.unexpected_keys
    assert all(name.endswith(".range") for name in odd.missing_keys)
    set_width(net.eval(), "FP")
    assert torch.equal(net(images()), start(images()))
    assert torch.equal(at_width(net, "2").stem[1].running_mean, start.stem[1].running_mean)


def test_a_state_of_the_same_widths_stays_as_it_is(trained):
    net = switchable(build, WIDTHS)
    net.load_state_dict(at_every_width(net, trained.state_dict()))
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in net.state_dict().items())
