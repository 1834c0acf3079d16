"""A perceptron with hidden layers, quantised as the other networks are: first and last layer stay at full precision."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from qnn.layers import QuantLinear
from qnn.quantizers import Quantizer


class Perceptron(nn.Module):
    """Linear layers with ReLUs between them, for images of `inputs` values."""

    def __init__(
        self, quantizer: Quantizer, *, hidden: Sequence[int] = (128, 64), inputs: int = 784, classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(inputs, hidden[0])]
        for before, width in pairwise(hidden):
            quantized = QuantLinear(before, width, weight_quantizer=quantizer.weight())
            layers += [nn.ReLU(), quantizer.activation(), quantized]
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
