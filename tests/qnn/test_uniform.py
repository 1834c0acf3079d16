import pytest
import torch
from torch import nn

from qnn.uniform import Uniform, UniformActivation, UniformWeight, gaussian_range

WIDTHS = pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])


def weights() -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def largest_value_only(w: torch.Tensor, bits: int) -> torch.Tensor:
    scale = w.abs().flatten(1).amax(1).view(-1, 1, 1, 1) / (2 ** (bits - 1) - 1)
    return (w / scale).round() * scale


@WIDTHS
def test_weights_have_symmetric_levels_per_channel(bits: int):
    w, steps = weights(), 2 ** (bits - 1) - 1
    quantized = UniformWeight(bits)(w)
    for channel, original in zip(quantized, w, strict=True):
        largest = channel.abs().max()
        assert largest <= original.abs().max() + 1e-6
        codes = channel / largest * steps
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        inside = original.abs() <= largest
        assert (channel - original)[inside].abs().max() <= largest / steps / 2 + 1e-6


@WIDTHS
def test_ranges_are_those_of_the_best_quantizers_of_a_bell_curve(bits: int):
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = 2 ** (bits - 1) - 1

    def error(largest: float) -> float:
        return float(((z * steps / largest).round().clamp(-steps, steps) * largest / steps - z).square().mean())

    best = gaussian_range(steps)
    assert error(best) < min(error(0.95 * best), error(1.05 * best))


@pytest.mark.parametrize("bits", [2, 3])
def test_outliers_do_not_set_the_range(bits: int):
    w = torch.randn(8, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    w[:, 0, 0, 0] = 8.0
    errors = [(quantized - w).square().mean() for quantized in (UniformWeight(bits)(w), largest_value_only(w, bits))]
    assert errors[0] < errors[1] / 2


@WIDTHS
def test_weight_gradients_pass_straight_through(bits: int):
    w = weights().requires_grad_()
    UniformWeight(bits)(w).backward(torch.arange(w.numel()).view_as(w).float())
    assert torch.equal(w.grad.flatten(), torch.arange(w.numel()).float())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_channel_has_no_values_but_its_levels(bits: int):
    w = torch.randn(16, 32, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert max(len(channel.unique()) for channel in UniformWeight(bits)(w)) <= 2**bits - 1


def test_a_channel_of_zeros_stays_zero():
    assert torch.equal(UniformWeight(2)(torch.zeros(2, 3)), torch.zeros(2, 3))


@WIDTHS
def test_activations_have_all_levels_up_to_the_range(bits: int):
    quantizer = UniformActivation(bits)
    levels = quantizer(torch.linspace(0, 6, 5000)).unique()
    torch.testing.assert_close(levels, torch.linspace(0, float(quantizer.range), 2**bits))
    quantizer.eval()
    torch.testing.assert_close(quantizer(torch.tensor([-1.0, 99.0])), torch.tensor([0.0, float(quantizer.range)]))


def test_the_range_of_half_a_bell_curve_is_the_best_and_never_beyond_the_largest_value():
    rectified = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu()
    quantizer = UniformActivation(2)
    quantizer(rectified)
    assert float(quantizer.range) == pytest.approx(gaussian_range(3), rel=0.01)
    constant = UniformActivation(2)
    constant(torch.full((9,), 0.5))
    assert constant.range == 0.5


def test_the_range_may_be_the_largest_value():
    outlier = torch.cat([torch.rand(1000, generator=torch.Generator().manual_seed(0)), torch.tensor([50.0])])
    ranges = {}
    for follows in ("least_error", "largest"):
        quantizer = Uniform(8, follows).activation()
        quantizer(outlier)
        ranges[follows] = quantizer.range.item()
    assert ranges["largest"] == 50.0
    assert ranges["least_error"] < 15.0
    with pytest.raises(ValueError, match=r"activation_range=most is unknown: use least_error or largest"):
        Uniform(8, "most")


def test_the_range_follows_in_training_mode_only():
    quantizer = UniformActivation(4)
    quantizer(torch.tensor([2.0]))
    assert quantizer.range == 2
    quantizer(torch.tensor([4.0]))
    torch.testing.assert_close(quantizer.range, torch.tensor(2.2))
    quantizer.eval()(torch.tensor([100.0]))
    torch.testing.assert_close(quantizer.range, torch.tensor(2.2))


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    quantizer = UniformActivation(2)
    quantizer(torch.tensor([3.0]))
    quantizer.eval()
    x = torch.tensor([-0.5, 0.0, 1.4, 3.0, 3.5], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_gradients_of_gradients_flow():
    quantizer = UniformActivation(4)
    quantizer(torch.tensor([1.0]))
    quantizer.eval()
    x, w = torch.tensor([0.3, 0.7], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    (first,) = torch.autograd.grad((quantizer(w * x) ** 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


def test_quantizers_of_a_width():
    assert isinstance(Uniform("FP").weight(), nn.Identity)
    assert isinstance(Uniform(32).activation(), nn.Identity)
    assert (Uniform("w4a8").weight().bits, Uniform("w4a8").activation().bits) == (4, 8)
    assert Uniform(4).topology == "fp"


@pytest.mark.parametrize("bits", [1, "w1a4"])
def test_one_bit_weights_are_refused(bits):
    with pytest.raises(ValueError, match="no 1-bit weights"):
        Uniform(bits)
