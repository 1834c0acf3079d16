import pytest
import torch
from torch.nn import functional as F

from qnn.layers import QuantConv2d, QuantLinear
from qnn.quantizers import DoReFaWeight


@pytest.mark.parametrize("bits", [1, 3])
def test_layers_compute_with_the_quantized_weight(bits: int):
    quantizer = DoReFaWeight(bits)
    conv = QuantConv2d(2, 3, 3, stride=2, padding=1, weight_quantizer=quantizer)
    linear = QuantLinear(6, 4, weight_quantizer=quantizer)
    x, v = torch.rand(2, 2, 8, 8), torch.rand(5, 6)
    assert torch.equal(conv(x), F.conv2d(x, quantizer(conv.weight), conv.bias, stride=2, padding=1))
    assert torch.equal(linear(v), F.linear(v, quantizer(linear.weight), linear.bias))
