import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import fgsm


class OnlyTheLeft(nn.Module):
    """Sees the left half of an image, and of a dark image nothing."""

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(x[..., : x.shape[-1] // 2] - 0.5).flatten(1).sum(1)
        return torch.stack([seen, -seen], 1)


class NoGradient(nn.Module):
    """The square root of zero: its gradient by the image is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        root = (0 * x).sqrt().flatten(1).sum(1)
        return torch.stack([root, -root], 1)


def test_gradients_of_a_dead_network_are_all_zero(constant):
    result = fgsm(constant.model, constant.x, constant.y)
    assert result.extra == {"zero_gradients": 5, "zero_gradient_values": 1}
    assert torch.equal(result.x_adv, constant.x)


@pytest.mark.parametrize("targeted", [False, True])
def test_gradients_of_a_saturated_softmax_are_all_zero(linear, targeted: bool):
    class Saturated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e6 * linear.model(x)

    targets = linear.y if targeted else None
    result = fgsm(Saturated(), linear.x, linear.y, targets=targets)
    assert result.extra == {"zero_gradients": 12, "zero_gradient_values": 1}


def test_a_linear_network_has_no_zero_gradient(linear):
    extra = fgsm(linear.model, linear.x, linear.y).extra
    assert extra == {"zero_gradients": 0, "zero_gradient_values": 0}
    assert all(type(value) is float for value in extra.values())


def test_zero_gradients_are_counted_by_images_and_by_values():
    x = torch.cat([torch.full((3, 2, 4, 6), 0.9), torch.full((1, 2, 4, 6), 0.1)])
    extra = fgsm(OnlyTheLeft(), x, torch.zeros(4, dtype=torch.int64)).extra
    assert extra == {"zero_gradients": 1, "zero_gradient_values": (3 * 0.5 + 1) / 4}


def test_gradients_that_are_no_numbers_do_not_count_as_zero():
    x = torch.rand(3, 1, 2, 2)
    result = fgsm(NoGradient(), x, torch.zeros(3, dtype=torch.int64))
    assert result.extra == {"zero_gradients": 0, "zero_gradient_values": 0}
    assert torch.equal(result.x_adv, x)


def test_no_images_have_no_zero_gradients(linear):
    nothing = linear.first(0)
    assert fgsm(linear.model, nothing.x, nothing.y).extra == {"zero_gradients": 0, "zero_gradient_values": 0}
