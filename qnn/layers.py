"""Convolution and linear layers whose weight passes through a quantiser."""

from __future__ import annotations

import copy

import torch
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


def freeze(net: nn.Module) -> nn.Module:
    """A copy for inference and attack: eval mode, no parameter gradients, weights quantised once.

    The copy computes exactly what `net.eval()` computes, without mapping the weights on every call.
    """
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    for layer in frozen.modules():
        if isinstance(layer, QuantConv2d | QuantLinear):
            with torch.no_grad():
                layer.weight.copy_(layer.weight_quantizer(layer.weight))
            layer.weight_quantizer = nn.Identity()
    return frozen
