import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qnn.models import ResNet
from qnn.quantizers import (
    ClipOnly,
    DoReFa,
    DoReFaActivation,
    DoReFaWeight,
    Quantizer,
    learn_norms_plainly,
    quantize_unit,
    scale_clipped_norms,
    straight_through,
)
from qnn.uniform import Uniform

BITS = pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
MULTIBIT = pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels(bits: int) -> Tensor:
    steps = 2**bits - 1
    return torch.from_numpy(np.arange(steps + 1, dtype=np.float32) / np.float32(steps))


def gradient(function, x: Tensor, upstream: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(x), x, upstream)
    return result


def test_straight_through_takes_one_value_and_the_other_gradient():
    x = noise(500).requires_grad_()
    hard = x / 3  # rounded once more, it would be another number
    out = straight_through(hard, 3 * x)
    assert torch.equal(out, hard)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((500,), 3.0))


@BITS
def test_every_level_is_a_fixed_point(bits: int):
    assert torch.equal(quantize_unit(levels(bits), bits), levels(bits))


@BITS
def test_unit_values_go_to_the_nearest_level(bits: int):
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    rounded = quantize_unit(x, bits)
    assert torch.isin(rounded, levels(bits)).all()
    assert (rounded - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-7


@BITS
def test_quantize_unit_is_idempotent(bits: int):
    once = quantize_unit(torch.linspace(0, 1, 1001), bits)
    assert torch.equal(quantize_unit(once, bits), once)


@BITS
def test_halves_go_to_the_even_level(bits: int):
    even = 0 if bits == 1 else 2 ** (bits - 1)
    assert quantize_unit(torch.tensor([0.5]), bits).item() == levels(bits)[even].item()


@BITS
def test_rounding_passes_the_gradient_unchanged(bits: int):
    upstream = noise(50, seed=1)
    assert torch.equal(gradient(lambda x: quantize_unit(x, bits), torch.linspace(0, 1, 50), upstream), upstream)


@BITS
def test_activation_is_clipped_and_rounded(bits: int):
    x = torch.linspace(-2, 3, 501)
    assert torch.equal(DoReFaActivation(bits)(x), quantize_unit(x.clamp(0, 1), bits))


@BITS
def test_activation_gradient_is_one_inside_and_zero_outside(bits: int):
    x = torch.tensor([-3.0, -1e-6, 0.0, 0.3, 0.5, 0.9, 1.0, 1.0 + 1e-6, 7.0])
    upstream = noise(9)
    inside = (x >= 0) & (x <= 1)
    assert torch.equal(gradient(DoReFaActivation(bits), x, upstream), upstream * inside)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("channels_last", [True, False])
def test_activation_is_clamp_then_round_exactly_in_value_and_gradient(bits: int, channels_last: bool):
    ends = torch.tensor([0.0, -0.0, 0.5, 1.0, torch.inf, -torch.inf, -5.0, -1e-30, 1e-30, 1e-45, 1e30])
    outside = torch.tensor([-torch.finfo(torch.float32).tiny, 1 + torch.finfo(torch.float32).eps])
    thresholds = (torch.arange(min(2**bits - 1, 50)) + 0.5) / (2**bits - 1)
    x = torch.cat([ends, outside, thresholds, torch.nextafter(thresholds, torch.ones(())), noise(400)])
    x = x[: len(x) // 4 * 4].reshape(1, 2, 2, -1)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    upstream = noise(*x.shape, seed=1)

    def apart(v: Tensor) -> Tensor:
        return quantize_unit(v.clamp(0, 1), bits)

    assert torch.equal(DoReFaActivation(bits)(x), apart(x))
    assert torch.equal(gradient(DoReFaActivation(bits), x, upstream), gradient(apart, x, upstream))


def test_activation_of_no_number_is_no_number():
    assert DoReFaActivation(3)(torch.tensor([torch.nan, 0.0])).isnan().tolist() == [True, False]


def test_activation_leaves_its_input_as_it_was():
    x = noise(50)
    kept = x.clone()
    DoReFaActivation(3)(x)
    assert torch.equal(x, kept)


def test_one_bit_weight_is_the_mean_magnitude_with_the_sign():
    w = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])
    assert DoReFaWeight(1)(w).tolist() == [[-1.5, 1.5], [1.5, 1.5]]


def test_one_bit_weight_passes_the_gradient_unchanged_even_beyond_one():
    upstream = noise(40, seed=1)
    assert torch.equal(gradient(DoReFaWeight(1), 3 * noise(40), upstream), upstream)


@MULTIBIT
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_weight_spans_minus_one_to_one_on_the_levels(bits: int, scale: float):
    w = scale * noise(20, 30)
    quantized = DoReFaWeight(bits)(w)
    assert quantized.abs().max() == 1
    assert quantized.flatten()[w.abs().argmax()] == w.flatten()[w.abs().argmax()].sign()
    assert torch.isin(quantized, 2 * levels(bits) - 1).all()
    assert len(quantized.unique()) <= 2**bits


@MULTIBIT
def test_weight_is_within_half_a_step_of_the_unrounded_map(bits: int):
    w = noise(20, 30).double()
    unrounded = w.tanh() / w.tanh().abs().max()
    error = DoReFaWeight(bits)(w.float()).double() - unrounded
    assert error.abs().max() <= 1 / (2**bits - 1) + 1e-6


@MULTIBIT
def test_weight_gradient_is_that_of_the_unrounded_map(bits: int):
    w, upstream = noise(20, 30), noise(20, 30, seed=1)
    unrounded = gradient(lambda v: v.tanh() / v.tanh().abs().max(), w, upstream)
    torch.testing.assert_close(gradient(DoReFaWeight(bits), w, upstream), unrounded, rtol=1e-4, atol=1e-6)


@MULTIBIT
def test_weight_gradient_flows_through_the_maximum(bits: int):
    w = torch.tensor([0.2, -0.9, 0.4])
    largest = gradient(DoReFaWeight(bits), w, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(largest, torch.zeros(3), rtol=0, atol=1e-6)
    other = gradient(DoReFaWeight(bits), w, torch.tensor([1.0, 0.0, 0.0]))
    assert other[1] > 0.05


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("quantizer", [DoReFaWeight, DoReFaActivation])
def test_arithmetic_is_float32_under_autocast(quantizer: type[nn.Module], bits: int):
    x = noise(64, 64)
    plain = quantizer(bits)(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(bits)(x)
        low = quantizer(bits)(x.bfloat16())
    assert cast.dtype == low.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(low, quantizer(bits)(x.bfloat16().float()))


@pytest.mark.parametrize(
    ("bits", "weight", "activation"),
    [
        ("FP", nn.Identity, nn.Identity),
        (3, DoReFaWeight, DoReFaActivation),
        ("w1aFP", DoReFaWeight, nn.Identity),
        ("wFPa4", nn.Identity, DoReFaActivation),
    ],
)
def test_dorefa_gives_the_quantizers_of_its_bits(bits: str | int, weight: type, activation: type):
    quantizer = DoReFa(bits)
    assert type(quantizer.weight()) is weight
    assert type(quantizer.activation()) is activation
    assert quantizer.topology == ("fp" if bits == "FP" else "quantized")


def test_dorefa_gives_weights_and_activations_their_own_width():
    quantizer = DoReFa("w2a5")
    assert (quantizer.weight().bits, quantizer.activation().bits) == (2, 5)


@pytest.mark.parametrize("bits", [1, "16", "w1aFP", "wFPa8"])
def test_clip_only_refuses_bits(bits: str | int):
    with pytest.raises(ValueError, match=rf"needs bits=FP, not bits={bits}"):
        ClipOnly(bits)


def test_clip_only_keeps_the_ranges_and_does_not_round():
    quantizer, w = ClipOnly("FP"), noise(500)
    weight = quantizer.weight()(w)
    assert weight.abs().max() == 1
    assert len(weight.unique()) == len(w.unique())
    assert quantizer.topology == "quantized"
    x = torch.cat([w, torch.tensor([0.0, 1.0, -1e-30, 1.0000001])])
    clip = quantizer.activation()
    assert torch.equal(clip(x), x.clamp(0, 1))
    assert torch.equal(gradient(clip, x, x), gradient(lambda x: x.clamp(0, 1), x, x))


@MULTIBIT
def test_clip_only_is_the_limit_of_dorefa(bits: int):
    w = noise(500)
    distance = (ClipOnly("FP").weight()(w) - DoReFa(bits).weight()(w)).abs().max()
    assert distance <= 1 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize(
    ("quantizer", "scale"), [(DoReFa(1), 1.0), (DoReFa(2), 1 / 3), (DoReFa(4), 0.25), (ClipOnly("FP"), 0.25)]
)
def test_norms_before_a_clip_start_at_the_scale_given_or_one_step_and_no_others(quantizer: Quantizer, scale: float):
    net = ResNet(quantizer, n=1)
    scale_clipped_norms(net, 0.25)
    norms = {name: norm for name, norm in net.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    clipped = {"stem.1", *(f"blocks.{i}.{part}.0" for i in range(3) for part in ("between", "after"))}
    for name, norm in norms.items():
        assert torch.equal(norm.weight, torch.full_like(norm.weight, scale if name in clipped else 1.0))


def test_a_step_changes_norms_learnt_in_units_by_the_unit_squared_times_as_much():
    def after_a_step(in_units: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = ResNet(DoReFa(4), n=1)
        before = {name: value.clone() for name, value in net.state_dict().items() if name.startswith("stem.1.")}
        scale_clipped_norms(net, 0.25, in_units=in_units)
        before["stem.1.weight"].fill_(0.25)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.rand(8, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        learn_norms_plainly(net)
        assert net.state_dict().keys() == ResNet(DoReFa(4), n=1).state_dict().keys()
        return {name: net.state_dict()[name] - before[name] for name in ("stem.1.weight", "stem.1.bias")}

    plain, in_units = after_a_step(False), after_a_step(True)
    for name, change in plain.items():
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(in_units[name], change / 16, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("quantizer", [DoReFa("FP"), Uniform(4)])
def test_where_nothing_is_clipped_to_the_unit_interval_no_norm_is_scaled(quantizer: Quantizer):
    net = ResNet(quantizer, n=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scale_clipped_norms(net, 0.25)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
