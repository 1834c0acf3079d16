"""Fast Gradient Sign Method (Goodfellow et al. 2015; seed paper §3.4, eq. 11-12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.losses import cross_entropy
from attacks.parameters import check_parameters
from attacks.result import AttackResult


@torch.no_grad()
def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float = 0.3, targets: Tensor | None = None) -> AttackResult:
    """One step of size `eps` in L∞ along the sign of the cross-entropy gradient, clipped to [0, 1].

    Args:
        eps: L∞ size of the step, in [0, 1].
        targets: classes to move towards, (n,); None: away from `y`.

    Returns:
        With `extra`: `zero_gradients`, images whose gradient is exactly zero everywhere, and
        `zero_gradient_values`, the mean share of input values whose gradient is.
    """
    check_parameters({"eps": eps})
    check_images(x, y, targets)
    objective = cross_entropy(y) if targets is None else cross_entropy(targets, sign=-1)
    with Evaluator(model, x) as network:
        _, gradient = network.gradients(x, objective)
    extra = _zeros(gradient)
    x_adv = (x + eps * gradient.nan_to_num_(0.0).sign()).clamp(0, 1)
    return AttackResult(x_adv, network.forwards, network.backwards, extra=extra)


def _zeros(gradient: Tensor) -> dict[str, float]:
    zero = gradient.flatten(1) == 0
    return {
        "zero_gradients": float(zero.all(1).sum()),
        "zero_gradient_values": float(zero.sum()) / max(1, zero.numel()),
    }
