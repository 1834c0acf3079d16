"""Input gradients, to hold those of one network against those of another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.evaluation import Cotangent, Evaluator, check_images


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
        return network.gradients(x, _cross_entropy(y))[1]


def _cross_entropy(classes: Tensor) -> Cotangent:
    """Cross-entropy whose gradient by the label's logit, p − 1, is summed from the other classes' probabilities."""

    def by_logits(logits: Tensor, rows: slice) -> Tensor:
        own = classes[rows][:, None]
        others = torch.softmax(logits, 1).scatter(1, own, 0.0)
        return others.scatter(1, own, -others.sum(1, keepdim=True))

    return by_logits
