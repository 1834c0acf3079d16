"""Uniform quantisers with straight-through gradients, for quantisation-aware training at any width from 2 bits up.

Weights: symmetric, one scale per output channel. Activations: unsigned, one scale per tensor, for layers that
follow a ReLU. Both ranges are min-max, that of the activations an exponential moving average. Signed levels
would waste half of them after a ReLU: at 2 bits two of the three would never be used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qnn.precision import Precision
from qnn.quantizers import QuantizerModule, clip_to_levels, straight_through

_TINY = torch.finfo(torch.float32).tiny
_NEWEST = 0.1


class UniformWeight(QuantizerModule):
    """s · round(w / s) with s = max|w| / (2^(bits−1) − 1) of each output channel; gradient 1.

    >>> UniformWeight(bits=3)(torch.tensor([[0.3, -0.2, 0.05]]))
    tensor([[ 0.3000, -0.2000,  0.0000]])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, w: Tensor) -> Tensor:
        with torch.autocast(w.device.type, enabled=False):
            w = w.float()
            largest = w.detach().abs().flatten(1).amax(1).view(-1, *[1] * (w.ndim - 1))
            scale = largest.clamp(min=_TINY) / (2 ** (self.bits - 1) - 1)
            return straight_through(torch.round(w.detach() / scale) * scale, w)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class UniformActivation(QuantizerModule):
    """The 2^bits levels from 0 to `range`; gradient 1 inside [0, range], 0 outside.

    In training mode `range` follows the largest value of each batch, and starts at that of the first.
    """

    range: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training:
                self._observe(x.detach().amax())
            scale = self.range.clamp(min=_TINY)
            return clip_to_levels(x / scale, self.bits) * scale

    def _observe(self, largest: Tensor) -> None:
        self.range = torch.where(self.range > 0, torch.lerp(self.range, largest, _NEWEST), largest)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class Uniform:
    """Uniform quantisers at the given bit widths; the identity where a width is FP.

    Args:
        bits: ``FP``, ``k`` or ``w4a8`` (see `Precision.parse`).

    Raises:
        ValueError: 1-bit weights, whose only symmetric level is 0.
    """

    topology: Literal["fp", "quantized"] = "fp"

    def __init__(self, bits: str | int) -> None:
        self.precision = Precision.parse(bits)
        if self.precision.weights == 1:
            raise ValueError(f"quantizer=uniform has no 1-bit weights, so not bits={bits}: use at least 2, or dorefa")

    def weight(self) -> nn.Module:
        bits = self.precision.weights
        return nn.Identity() if bits is None else UniformWeight(bits)

    def activation(self) -> nn.Module:
        bits = self.precision.activations
        return nn.Identity() if bits is None else UniformActivation(bits)
