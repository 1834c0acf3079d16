"""Mnist A, B and C (seed paper §6.1; ANNT's model_a/b/c)."""

from __future__ import annotations

from torch import Tensor, nn

from qnn.layers import QuantConv2d, QuantLinear
from qnn.models.building import he_normal_, uses_quantized_topology
from qnn.quantizers import Quantizer


class MnistConvNet(nn.Module):
    """Four 3×3 convolutions of `width` channels and a hidden layer of 512, no batch norm.

    Order inside the quantised network: ReLU, pool, clip and quantise (pool and ReLU commute, and
    pooling first costs a quarter). The first convolution and the last layer stay at full precision;
    the output of `fc0` is not quantised.

    Args:
        width: 16 (Mnist A), 32 (B) or 64 (C).
    """

    input_shape = (1, 28, 28)

    def __init__(self, quantizer: Quantizer, *, width: int, classes: int = 10, topology: str = "auto") -> None:
        super().__init__()
        uses_quantized_topology(topology, quantizer)  # both topologies are the same here: no extra layers

        def conv() -> QuantConv2d:
            return QuantConv2d(width, width, 3, padding=1, weight_quantizer=quantizer.weight())

        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), quantizer.activation(),
            conv(), nn.ReLU(), quantizer.activation(),
            conv(), nn.MaxPool2d(2), nn.ReLU(), quantizer.activation(),
            conv(), nn.ReLU(), quantizer.activation(),
        )  # fmt: skip
        self.fc0 = QuantLinear(49 * width, 512, weight_quantizer=quantizer.weight())
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        self.linear = nn.Linear(512, classes)
        self.apply(he_normal_)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.head(self.fc0(self.features(x).flatten(1))))
