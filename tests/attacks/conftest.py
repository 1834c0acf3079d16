"""Networks to attack: a linear one whose minimal perturbations are known, and small trained ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import select_correct
from qnn.data import Batches, ImageData, digits
from qnn.freezing import freeze
from qnn.models import MnistConvNet
from qnn.quantizers import DoReFa


@dataclass(frozen=True)
class Victim:
    """A network and images it classifies as `y`."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x).argmax(1)

    @property
    def wrong_class(self) -> Tensor:
        """The class after `y`, as the target of an attack."""
        with torch.no_grad():
            return (self.y + 1) % self.model(self.x[:1]).shape[1]

    def first(self, n: int) -> Victim:
        """The same network with the first `n` images."""
        return Victim(self.model, self.x[:n], self.y[:n])


class Linear(nn.Module):
    """Logits W x + b whose decision boundaries all pass near the grey image 0.5."""

    def __init__(self, classes: int, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=generator))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)

    def minimal(self, x: Tensor, y: Tensor, norm: float) -> Tensor:
        """Distance of each image to the nearest other class in L2 or L∞, without regard to [0, 1]."""
        logits = self(x).detach()
        margin = logits.gather(1, y[:, None]) - logits
        difference = self.weight[y][:, None] - self.weight[None]
        dual = {2: 2, float("inf"): 1}[norm]
        distance = margin / difference.detach().norm(p=dual, dim=2)
        return distance.scatter(1, y[:, None], float("inf")).amin(1)


class Constant(nn.Module):
    """Class 3 of ten, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(F.one_hot(torch.tensor(3), 10).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


def linear_victim(classes: int, shape: tuple[int, ...] = (1, 4, 4), n: int = 12) -> Victim:
    model = Linear(classes, math.prod(shape))
    x = 0.5 + 0.05 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))
    return Victim(model, x, model(x).argmax(1))


@pytest.fixture
def make_linear() -> Callable[..., Victim]:
    """`linear_victim` itself, for tests of several shapes."""
    return linear_victim


@pytest.fixture
def linear() -> Victim:
    return linear_victim(classes=4)


@pytest.fixture
def linear_pair() -> Victim:
    return linear_victim(classes=2)


@pytest.fixture
def constant() -> Victim:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return Victim(Constant(), x, torch.full((5,), 3))


@pytest.fixture(scope="session")
def digits_data() -> ImageData:
    return digits()


@pytest.fixture(scope="session")
def trained(digits_data: ImageData) -> Callable[[str], Victim]:
    """Gives the small network of given bits, trained for a few seconds, and the test digits it gets right."""

    @functools.cache
    def train(bits: str) -> Victim:
        torch.manual_seed(0)
        net = MnistConvNet(DoReFa(bits), width=8)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for images, labels in Batches(digits_data.train, 32, shuffle=True, steps=200):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        frozen, test = freeze(net), digits_data.test
        with torch.no_grad():
            chosen = select_correct(frozen, test.pixels, test.labels, n=200, seed=0)
        return Victim(frozen, test.pixels(chosen.indices), chosen.labels)

    return train


@pytest.fixture(scope="session", params=["FP", "1"])
def victim(request: pytest.FixtureRequest, trained: Callable[[str], Victim]) -> Victim:
    """Twelve digits that a small network gets right."""
    return trained(request.param).first(12)
