"""Input gradients, to hold those of one network against those of another."""

from __future__ import annotations

from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.losses import exact_cross_entropy


def input_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (n, …) by each image of its own cross-entropy, with the network in eval mode.

    Its direction is exact also for an image whose label has a probability that float32 rounds to 1.

    Args:
        x, y: images (n, …) in [0, 1] and labels (n,).

    Raises:
        ValueError: they are not.
    """
    check_images(x, y)
    with Evaluator(model, x) as network:
        return network.gradients(x, exact_cross_entropy(y))[1]
