"""CIFAR ResNets of depth 6n + 2 with pre-activation blocks, as ANNT trains and quantises them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.layers import QuantConv2d
from qnn.models.building import uses_quantized_topology
from qnn.quantizers import Quantizer


class ResNet(nn.Module):
    """ResNet-20/32/44/56 (n = 3/5/7/9) for 32×32 images.

    The quantised network is not the FP one plus quantisers: each block ends in an extra batch norm,
    ReLU, clip and quantise, whose output is added to the skip path, and the input of a block's first
    convolution (batch norm, ReLU) is not quantised. Quantisers that keep the FP topology quantise the input of
    every convolution but the stem's. Stem and head weights stay at full precision.

    Args:
        n: blocks per stage.
    """

    input_shape = (3, 32, 32)

    def __init__(self, quantizer: Quantizer, *, n: int, classes: int = 10, topology: str = "auto") -> None:
        super().__init__()
        quantized = uses_quantized_topology(topology, quantizer)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *_bn_relu(16), quantizer.activation())
        blocks: list[nn.Module] = []
        inputs = 16
        for stage, width in enumerate((16, 32, 64)):
            for i in range(n):
                blocks.append(_Block(inputs, width, quantizer, quantized, first=stage == i == 0))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_bn_relu(64))
        self.linear = nn.Linear(64, classes)
        self.apply(_initialise)

    @property
    def stage_ends(self) -> tuple[str, str, str]:
        """The last block of each stage, of 32×32, 16×16 and 8×8 outputs."""
        n = len(self.blocks) // 3
        return (f"blocks.{n - 1}", f"blocks.{2 * n - 1}", f"blocks.{3 * n - 1}")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.head(self.blocks(self.stem(x))).mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, quantizer: Quantizer, quantized: bool, *, first: bool) -> None:
        super().__init__()
        self.grows = width != inputs
        self.extra_channels = (width - inputs) // 2
        self.pre = nn.Sequential() if first else nn.Sequential(*_bn_relu(inputs))
        if not (first or quantized):
            self.pre.append(quantizer.activation())
        self.conv1 = QuantConv2d(
            inputs, width, 3, stride=2 if self.grows else 1, padding=1, bias=False, weight_quantizer=quantizer.weight()
        )
        self.between = nn.Sequential(*_bn_relu(width), quantizer.activation())
        self.conv2 = QuantConv2d(width, width, 3, padding=1, bias=False, weight_quantizer=quantizer.weight())
        self.after = nn.Sequential(*_bn_relu(width), quantizer.activation()) if quantized else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.after(self.conv2(self.between(self.conv1(self.pre(x)))))
        if self.grows:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, self.extra_channels, self.extra_channels))
        return out + x


def _bn_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    """Convolutions: variance scaling 2 over fan-out, truncated normal; linear: He normal over fan-in."""
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        # 0.8796 is the standard deviation of a unit normal cut at two standard deviations
        std = (2 / (module.out_channels * kernel)) ** 0.5 / 0.87962566
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        torch.nn.init.zeros_(module.bias)
