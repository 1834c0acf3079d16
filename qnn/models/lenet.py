"""LeNet-5 A, B and C with tanh and average pooling (ANNT's lenet5_a/b/c)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qnn.layers import QuantConv2d, QuantLinear
from qnn.models.building import he_normal_, uses_quantized_topology
from qnn.quantizers import Quantizer


class LeNet5(nn.Module):
    """Two 5×5 convolutions, then tanh layers; A has no extra hidden layer, B one of 500, C two.

    Tanh stays in the quantised network, so that the activation clip removes its negative half. The
    first convolution and the last layer stay at full precision; the output of `fc1` is not quantised.

    Args:
        extra: widths of the hidden layers put before 120-84.
    """

    input_shape = (1, 28, 28)

    def __init__(
        self, quantizer: Quantizer, *, extra: Sequence[int] = (), classes: int = 10, topology: str = "auto"
    ) -> None:
        super().__init__()
        uses_quantized_topology(topology, quantizer)  # both topologies are the same here: no extra layers
        layers: list[nn.Module] = [
            nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), quantizer.activation(),
            QuantConv2d(6, 16, 5, weight_quantizer=quantizer.weight()), nn.Tanh(), nn.AvgPool2d(2),
            quantizer.activation(), nn.Flatten(),
        ]  # fmt: skip
        inputs = 400
        for width in (*extra, 120):
            layers += [
                QuantLinear(inputs, width, weight_quantizer=quantizer.weight()),
                nn.Tanh(),
                quantizer.activation(),
            ]
            inputs = width
        layers += [QuantLinear(inputs, 84, weight_quantizer=quantizer.weight()), nn.Tanh(), nn.Linear(84, classes)]
        self.layers = nn.Sequential(*layers)
        self.apply(he_normal_)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
