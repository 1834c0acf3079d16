from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import evaluation
from attacks.evaluation import Evaluator
from attacks.losses import Hinge, cross_entropy, logit, margin, runner_up

BITS = ["FP", "1", "2", "8"]


@pytest.fixture
def call_sizes(linear) -> list[int]:
    """Sizes of the batches the linear network is called with, filled as it is."""
    sizes: list[int] = []
    linear.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


def gradient_of(model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(objective(model(leaf)).sum(), leaf)[0]


def test_logits_and_gradients_are_those_of_autograd(trained):
    victim = trained("FP").first(40)
    with Evaluator(victim.model, victim.x) as network:
        logits = network.logits(victim.x)
        again, gradient = network.gradients(victim.x, cross_entropy(victim.y))
    with torch.no_grad():
        torch.testing.assert_close(logits, victim.model(victim.x), rtol=1e-5, atol=1e-5)
    assert torch.equal(again, logits)
    expected = gradient_of(victim.model, victim.x, lambda out: F.cross_entropy(out, victim.y, reduction="none"))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("bits", BITS)
def test_an_image_has_the_same_logits_and_gradients_in_every_batch(trained, bits: str):
    victim = trained(bits).first(40)
    with Evaluator(victim.model, victim.x) as network:
        logits, gradient = network.gradients(victim.x, margin(victim.y))
        for n in range(1, 40):
            part = network.gradients(victim.x[40 - n :], margin(victim.y[40 - n :]))
            assert torch.equal(part[0], logits[40 - n :])
            assert torch.equal(part[1], gradient[40 - n :])
            assert torch.equal(network.logits(victim.x[:n]), logits[:n])


@pytest.mark.parametrize("bits", ["FP", "1"])
def test_small_blocks_give_the_same_logits_and_gradients(trained, bits: str, monkeypatch: pytest.MonkeyPatch):
    victim = trained(bits).first(45)
    found = []
    for values in (2**17, 784, 784 * 17):
        monkeypatch.setitem(evaluation._BLOCK_VALUES, "cpu", values)
        with Evaluator(victim.model, victim.x) as network:
            found.append((network.logits(victim.x), *network.gradients(victim.x, cross_entropy(victim.y))))
    for parts in found[1:]:
        assert all(torch.equal(part, whole) for part, whole in zip(parts, found[0], strict=True))


def test_images_are_passed_in_blocks_of_multiples_of_eight(linear, call_sizes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(evaluation._BLOCK_VALUES, "cpu", 16 * 17)
    x = torch.rand(37, 1, 4, 4)
    with Evaluator(linear.model, x) as network:
        network.logits(x)
        assert call_sizes == [16, 16, 8]
        network.gradients(x, logit(torch.zeros(37, dtype=torch.int64)))
    assert call_sizes == [16, 16, 8] * 2


def test_several_objectives_give_their_gradients_in_one_forward_pass(linear, call_sizes):
    y, targets = linear.y, linear.wrong_class
    objectives = [cross_entropy(y), logit(targets), margin(y, sign=-1)]
    call_sizes.clear()
    with Evaluator(linear.model, linear.x) as network:
        _, *together = network.gradients(linear.x, *objectives)
        assert call_sizes == [16]
        alone = [network.gradients(linear.x, objective)[1] for objective in objectives]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(together[1].flatten(1), linear.model.weight[targets])
    assert not torch.equal(together[0], together[1])


def test_images_are_counted_without_padding(linear):
    with Evaluator(linear.model, linear.x) as network:
        network.logits(linear.x)
        assert (network.forwards, network.backwards) == (12, 0)
        network.predict(linear.x[:5])
        assert (network.forwards, network.backwards) == (17, 0)
        network.gradients(linear.x[:3], cross_entropy(linear.y[:3]), margin(linear.y[:3]))
        assert (network.forwards, network.backwards) == (20, 6)


def test_no_images_have_no_logits(linear):
    with Evaluator(linear.model, linear.x[:0]) as network:
        assert len(network.logits(linear.x[:0])) == 0
        assert network.predict(linear.x[:0]).shape == (0,)
    assert network.forwards == 0


def test_each_part_is_back_in_its_mode_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())).train()
    model[1][0].eval()
    modes = [module.training for module in model.modules()]
    network = Evaluator(model, torch.rand(2, 3))
    with network:
        assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="expected"), network:
        network.logits(torch.rand(2, 3, 1, 1, 1))
    assert [module.training for module in model.modules()] == modes


LOGITS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.where(torch.arange(20) < 10, LOGITS.argmax(1), torch.arange(20) % 6)


def by_logits(objective: Callable[[Tensor], Tensor]) -> Tensor:
    return gradient_of(nn.Identity(), LOGITS, objective)


def lead(out: Tensor) -> Tensor:
    """By how much the largest other logit exceeds that of the class."""
    others = out.masked_fill(F.one_hot(CLASSES, 6).bool(), -torch.inf)
    return others.amax(1) - out.gather(1, CLASSES[:, None])[:, 0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_cotangents_are_gradients_by_the_logits(sign: int, scale: float):
    rows = slice(0, 20)
    expected = by_logits(lambda out: sign * F.cross_entropy(scale * out, CLASSES, reduction="none"))
    torch.testing.assert_close(cross_entropy(CLASSES, sign=sign, scale=scale)(LOGITS, rows), expected)
    expected = by_logits(lambda out: sign * scale * lead(out))
    torch.testing.assert_close(margin(CLASSES, sign=sign, scale=scale)(LOGITS, rows), expected)


@pytest.mark.parametrize("objective", [cross_entropy(CLASSES), margin(CLASSES), logit(CLASSES)])
def test_a_block_is_given_its_own_classes(objective):
    whole = objective(LOGITS, slice(0, 20))
    assert torch.equal(objective(LOGITS[8:16], slice(8, 16)), whole[8:16])


@pytest.mark.parametrize("targeted", [False, True])
def test_the_hinge_is_zero_from_the_confidence_on(targeted: bool):
    ahead = -lead(LOGITS) if targeted else lead(LOGITS)
    values = Hinge(CLASSES, targeted, 0.5)(LOGITS)
    torch.testing.assert_close(values, (0.5 - ahead).clamp(min=0))
    assert 0 < (values == 0).sum() < 20


@pytest.mark.parametrize("targeted", [False, True])
def test_the_hinge_slopes_from_the_upper_to_the_lower_logit(targeted: bool):
    hinge, rows = Hinge(CLASSES, targeted, 100.0), slice(3, 11)
    slope = hinge.upper(LOGITS[rows], rows) - hinge.lower(LOGITS[rows], rows)
    assert torch.equal(slope, by_logits(hinge)[rows])


def test_the_runner_up_is_never_the_class_itself():
    top = LOGITS.argmax(1)
    assert torch.equal(runner_up(LOGITS, top), LOGITS.topk(2).indices[:, 1])
    assert torch.equal(runner_up(LOGITS, LOGITS.argmin(1)), top)
