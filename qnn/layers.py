"""Convolution and linear layers whose weight passes through a quantiser."""

from __future__ import annotations

from collections.abc import Iterator

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


def quantized_layers(net: nn.Module) -> Iterator[tuple[str, QuantConv2d | QuantLinear]]:
    """The layers of `net` whose weight passes through a quantiser, with their names."""
    for name, layer in net.named_modules():
        if isinstance(layer, QuantConv2d | QuantLinear):
            yield name, layer


@torch.no_grad()
def quantize_once(net: nn.Module) -> nn.Module:
    """Put the quantised weights in the place of the weights, and the identity in that of their quantisers."""
    for _, layer in quantized_layers(net):
        layer.weight.copy_(layer.weight_quantizer(layer.weight))
        layer.weight_quantizer = nn.Identity()
    return net
