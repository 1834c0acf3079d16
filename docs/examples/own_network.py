"""A network in plain PyTorch that knows nothing of this project, and what lets sweeps build it."""

from torch import Tensor, nn

from qnn.quantizers import Quantizer


class OwnNetwork(nn.Module):
    """Two convolutions and a linear layer for 28×28 grey images."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.linear = nn.Linear(2 * channels * 49, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


def build(quantizer: Quantizer, *, channels: int, classes: int) -> OwnNetwork:
    """The untrained network, which has no place for quantisers.

    Raises:
        ValueError: a width other than FP.
    """
    if not isinstance(quantizer.weight(), nn.Identity):
        raise ValueError("model=own_network is not quantised: use bits=FP")
    return OwnNetwork(channels, classes)
