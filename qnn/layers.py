"""Convolution and linear layers whose weight passes through a quantiser."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class QuantConv2d(nn.Conv2d):
    """`nn.Conv2d` with `weight_quantizer` applied to its weight on every call."""

    def __init__(self, *args, weight_quantizer: nn.Module, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """`nn.Linear` with `weight_quantizer` applied to its weight on every call."""

    def __init__(self, *args, weight_quantizer: nn.Module, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)
