"""Packed weights are the weights a DoReFa quantiser returns, bit for bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qnn.packing import blank, decode, encode, pack, packed_length, unpack
from qnn.quantizers import DoReFaWeight

WIDTHS = range(1, 17)


def effective(shape: tuple[int, ...], bits: int, seed: int = 0) -> Tensor:
    return DoReFaWeight(bits)(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def bits_of(weight: Tensor) -> np.ndarray:
    return weight.numpy().view(np.int32)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 1001])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_survive_packing_in_as_many_bytes_as_their_bits_fill(bits, count):
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint16)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert len(packed) == packed_length(count, bits) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_lowest_and_highest_codes_survive(bits):
    codes = np.array([0, 2**bits - 1, 0, 2**bits - 1, 2 ** (bits - 1)])
    assert unpack(pack(codes, bits), bits, 5).tolist() == codes.tolist()


@pytest.mark.parametrize("length", [0, 2, 4])
def test_codes_of_another_length_are_refused(length):
    with pytest.raises(ValueError, match=f"5 codes of 4 bits take 3 bytes, not {length}"):
        unpack(np.zeros(length, np.uint8), 4, 5)


@pytest.mark.parametrize("shape", [(3,), (5, 7), (4, 3, 3, 3)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_effective_weights_survive_bit_for_bit(bits, shape):
    weight = effective(shape, bits)
    parts = encode(weight, bits)
    np.testing.assert_array_equal(bits_of(decode(parts, bits, shape)), bits_of(weight))
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == {
        name: (part.dtype, part.shape) for name, part in blank(shape, bits).items()
    }


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_level_is_the_one_the_quantiser_returns(bits):
    steps = 2**bits - 1
    # tanh of these, over its maximum, is 2 i / steps − 1 up to rounding
    units = 2 * torch.arange(steps + 1).double() / steps - 1
    weight = DoReFaWeight(bits)(torch.atanh(units * 0.5).float())
    parts = encode(weight, bits)
    assert unpack(parts["codes"].numpy(), bits, steps + 1).tolist() == list(range(steps + 1))
    np.testing.assert_array_equal(bits_of(decode(parts, bits, weight.shape)), bits_of(weight))


def test_one_bit_weights_are_signs_and_a_scale():
    weight = DoReFaWeight(1)(torch.tensor([0.0, -0.1, 0.2, -3.0]))
    parts = encode(weight, 1)
    assert parts["codes"].tolist() == [0b10100000]
    assert parts["scale"] == weight[0] == -weight[1]


@pytest.mark.parametrize("bits", [1, 2, 16])
@pytest.mark.parametrize("odd", [0.4, float("nan"), float("inf")])
def test_weights_off_the_levels_are_refused(bits, odd):
    weight = effective((6,), bits)
    weight[2] = odd
    with pytest.raises(ValueError, match=f"not the weights of a {bits}-bit layer"):
        encode(weight, bits)


def test_layout_in_memory_does_not_matter():
    weight = effective((4, 3, 3, 3), 4)
    parts = encode(weight.contiguous(memory_format=torch.channels_last), 4)
    assert torch.equal(parts["codes"], encode(weight, 4)["codes"])
