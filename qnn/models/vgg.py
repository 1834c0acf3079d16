"""VGG-11, 13 and 16 with batch norm for CIFAR (Simonyan & Zisserman 2015, table 1, configurations A, B and D)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from qnn.layers import QuantConv2d
from qnn.models.building import he_normal_
from qnn.quantizers import Quantizer

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ending in a 2×2 max pool, and one linear layer for 32×32 images.

    Convolution, batch norm, ReLU, the pool where there is one, activation quantiser: the same layers at every
    bit width. The first convolution and the linear layer stay at full precision; what the linear layer sees is
    not quantised.

    Args:
        depth: 11, 13 or 16, as in the paper, which counts three linear layers.
    """

    input_shape = (3, 32, 32)

    def __init__(self, quantizer: Quantizer, *, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"depth={depth} is unknown: use one of {', '.join(map(str, _CONVOLUTIONS))}")
        stages: list[nn.Module] = []
        inputs = 3
        for width, convolutions in zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True):
            last = len(stages) == len(_WIDTHS) - 1
            stages.append(_stage(inputs, width, convolutions, quantizer, first=not stages, last=last))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs, classes)
        self.apply(he_normal_)

    @property
    def stage_ends(self) -> tuple[str, str, str]:
        """The modules that end the first three stages, of 16×16, 8×8 and 4×4 outputs."""
        return ("stages.0", "stages.1", "stages.2")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(x).flatten(1))


def _stage(
    inputs: int, width: int, convolutions: int, quantizer: Quantizer, *, first: bool, last: bool
) -> nn.Sequential:
    units: list[nn.Module] = []
    for i in range(convolutions):
        ends = i == convolutions - 1
        conv = _convolution(inputs, width, quantizer, quantized=not (first and i == 0))
        unit = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), relu=nn.ReLU()))
        if ends:
            unit.add_module("pool", nn.MaxPool2d(2))
        if not (last and ends):
            unit.add_module("quantize", quantizer.activation())
        units.append(unit)
        inputs = width
    return nn.Sequential(*units)


def _convolution(inputs: int, width: int, quantizer: Quantizer, *, quantized: bool) -> nn.Conv2d:
    if not quantized:
        return nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    return QuantConv2d(inputs, width, 3, padding=1, bias=False, weight_quantizer=quantizer.weight())
