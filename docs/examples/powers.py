"""Weights rounded to powers of two (Miyashita et al. 2016), activations as DoReFa has them."""

import torch
from torch import Tensor, nn

from qnn.precision import Precision
from qnn.quantizers import DoReFaActivation, QuantizerModule, straight_through


class PowerOfTwoWeight(QuantizerModule):
    """±2^e with 2^(bits − 1) exponents e, the largest that of max|w|, or at most 0 with `clip`; gradient 1."""

    def __init__(self, bits: int, *, clip: bool) -> None:
        super().__init__()
        self.bits, self.clip = bits, clip

    def forward(self, w: Tensor) -> Tensor:
        size = w.detach().abs().clamp(min=1e-30).log2().round()
        highest = size.max().clamp(max=0) if self.clip else size.max()
        exponent = size.clamp(highest - 2 ** (self.bits - 1) + 1, highest)
        return straight_through(torch.where(w >= 0, 1.0, -1.0) * 2**exponent, w)


class PowersOfTwo:
    """What a network asks for when it is built: a module for its weights, a module for its activations."""

    topology = "quantized"

    def __init__(self, bits: str | int, *, clip: bool = False) -> None:
        self.precision, self.clip = Precision.parse(bits), clip

    def weight(self) -> nn.Module:
        bits = self.precision.weights
        return nn.Identity() if bits is None else PowerOfTwoWeight(bits, clip=self.clip)

    def activation(self) -> nn.Module:
        bits = self.precision.activations
        return nn.Identity() if bits is None else DoReFaActivation(bits)
