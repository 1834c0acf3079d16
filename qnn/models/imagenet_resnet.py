"""ImageNet ResNets of basic blocks (He et al. 2016, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from qnn.layers import QuantConv2d
from qnn.models.building import he_normal_
from qnn.quantizers import Quantizer

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ImageNetResNet(nn.Module):
    """ResNet-18 or 34 with post-activation blocks, for 224×224 images; takes any size from 33×33 up.

    The same layers at every bit width. Every ReLU but the last is followed by the activation quantiser (in the
    stem after the max pool), so that a block's convolutions and its shortcut get the same quantised input. The
    7×7 stem and the linear layer stay at full precision, the 1×1 convolutions of the shortcuts do not.

    Args:
        depth: 18 or 34.
    """

    input_shape = (3, None, None)

    def __init__(self, quantizer: Quantizer, *, depth: int, classes: int = 1000) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth={depth} is unknown: use one of {', '.join(map(str, _BLOCKS))}")
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1), quantizer.activation(),
        )  # fmt: skip
        stages: list[nn.Module] = []
        inputs = 64
        for width, blocks in zip(_WIDTHS, _BLOCKS[depth], strict=True):
            last = len(stages) == len(_WIDTHS) - 1
            stages.append(_stage(inputs, width, blocks, quantizer, last=last))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs, classes)
        self.apply(he_normal_)

    @property
    def stage_ends(self) -> tuple[str, str, str]:
        """The modules that end the first three stages, of 56×56, 28×28 and 14×14 outputs for 224×224 images."""
        return ("stages.0", "stages.1", "stages.2")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(self.stem(x)).mean(dim=(2, 3)))


def _stage(inputs: int, width: int, blocks: int, quantizer: Quantizer, *, last: bool) -> nn.Sequential:
    made: list[nn.Module] = []
    for i in range(blocks):
        made.append(_BasicBlock(inputs, width, quantizer, feeds_linear=last and i == blocks - 1))
        inputs = width
    return nn.Sequential(*made)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, quantizer: Quantizer, *, feeds_linear: bool) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1 = _convolution(inputs, width, 3, stride, quantizer)
        self.between = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), quantizer.activation())
        self.conv2 = _convolution(width, width, 3, 1, quantizer)
        self.norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.append(_convolution(inputs, width, 1, 2, quantizer))
            self.shortcut.append(nn.BatchNorm2d(width))
        self.after = nn.Sequential(nn.ReLU())
        if not feeds_linear:
            self.after.append(quantizer.activation())

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv2(self.between(self.conv1(x))))
        return self.after(out + self.shortcut(x))


def _convolution(inputs: int, width: int, kernel: int, stride: int, quantizer: Quantizer) -> QuantConv2d:
    weight = quantizer.weight()
    return QuantConv2d(inputs, width, kernel, stride=stride, padding=kernel // 2, bias=False, weight_quantizer=weight)
