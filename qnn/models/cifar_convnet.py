"""CIFAR convnets A, B and C (ANNT's cifar_a/b/c).

ANNT's quantised B and C cannot be trained: they lack the extra convolutions of their FP versions,
quantise the first layer and put no batch norm on `fc0`. Here they follow the recipe of quantised A
on the layer list of FP B and C. All take 32×32 images (ANNT's B and C were cut to 30×30).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from qnn.layers import QuantConv2d, QuantLinear
from qnn.models.building import he_normal_, uses_quantized_topology
from qnn.quantizers import Quantizer

# Each stage: (channels, padding) of its 3×3 convolutions; the first two stages end in a pool.
_STAGES: dict[str, list[list[tuple[int, int]]]] = {
    "a": [[(64, 1)] * 2, [(128, 1)] * 2, [(128, 0)] * 2],
    "b": [[(64, 1)] * 3, [(128, 1)] * 3, [(256, 1), (256, 0), (256, 0)]],
    "c": [[(64, 1)] * 2, [(128, 1)] * 3, [(128, 0)] * 3],
}


class SamePool(nn.Module):
    """3×3 max pool, stride 2, with TensorFlow's SAME padding: one row and column at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)


class CifarConvNet(nn.Module):
    """3×3 convolutions in three stages, then 1536-512-10.

    FP: convolution, batch norm, ReLU, the pool where there is one; the activation quantiser is part of the last of
    these, so that layers have the same names at every width. Quantised: the first convolution has a bias and no
    batch norm; every other one is followed by batch norm (ε 1e-4), the pool where there is one, clip and quantise,
    with no ReLU; `fc0` gets batch norm, `fc1` a ReLU and no quantiser.

    Args:
        variant: ``a``, ``b`` or ``c``.
    """

    input_shape = (3, 32, 32)

    def __init__(self, quantizer: Quantizer, *, variant: str, classes: int = 10, topology: str = "auto") -> None:
        super().__init__()
        if variant not in _STAGES:
            raise ValueError(f"variant={variant} is unknown: use one of {', '.join(_STAGES)}")
        quantized = uses_quantized_topology(topology, quantizer)
        stages = _STAGES[variant]
        self.features = nn.Sequential(*_features(stages, quantizer, quantized))
        side = 8 - 2 * sum(padding == 0 for _, padding in stages[-1])
        flat = stages[-1][-1][0] * side**2
        self.classifier = nn.Sequential(*_classifier(flat, classes, quantizer, quantized))
        self.apply(he_normal_)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _features(stages: Sequence[Sequence[tuple[int, int]]], quantizer: Quantizer, quantized: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for s, stage in enumerate(stages):
        for i, (channels, padding) in enumerate(stage):
            pools = s < len(stages) - 1 and i == len(stage) - 1
            if s == i == 0:
                layers += [nn.Conv2d(inputs, channels, 3, padding=padding, bias=quantized)]
                layers += [] if quantized else [nn.BatchNorm2d(channels)]
            else:
                weight = quantizer.weight()
                layers += [QuantConv2d(inputs, channels, 3, padding=padding, bias=False, weight_quantizer=weight)]
                layers += [nn.BatchNorm2d(channels, eps=1e-4 if quantized else 1e-5)]
            layers += [] if quantized else [nn.ReLU()]
            layers += [SamePool()] if pools else []
            if quantized:
                layers.append(_bounded(quantizer))
            else:
                layers[-1] = nn.Sequential(layers[-1], quantizer.activation())
            inputs = channels
    return layers


def _classifier(flat: int, classes: int, quantizer: Quantizer, quantized: bool) -> list[nn.Module]:
    fc0 = QuantLinear(flat, 1536, weight_quantizer=quantizer.weight())
    fc1 = QuantLinear(1536, 512, weight_quantizer=quantizer.weight())
    middle: list[nn.Module] = [nn.Sequential(nn.ReLU(), quantizer.activation())]
    if quantized:
        middle = [nn.BatchNorm1d(1536, eps=1e-4), _bounded(quantizer)]
    return [fc0, *middle, nn.Dropout(0.5), fc1, nn.ReLU(), nn.Linear(512, classes)]


def _bounded(quantizer: Quantizer) -> nn.Module:
    """The activation quantiser, or a ReLU where there is nothing to quantise (DoReFa at 32 bits)."""
    activation = quantizer.activation()
    return nn.ReLU() if isinstance(activation, nn.Identity) else activation
