"""The momentum iterative method (MI-FGSM, Dong et al. 2018): sign steps along a running mean of gradients."""

import torch
from torch import Tensor, nn

from attacks import AttackResult
from attacks.evaluation import Evaluator, check_images
from attacks.losses import cross_entropy


@torch.no_grad()
def momentum(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    max_iter: int = 10,
    decay: float = 1.0,
    targets: Tensor | None = None,
) -> AttackResult:
    """`max_iter` steps of size eps / max_iter, which stay within `eps` of the image (L∞) and within [0, 1]."""
    check_images(x, y, targets)
    objective = cross_entropy(y) if targets is None else cross_entropy(targets, sign=-1)
    x_adv, memory = x.clone(), torch.zeros_like(x)
    with Evaluator(model, x) as network:
        for _ in range(max_iter):
            _, gradient = network.gradients(x_adv, objective)
            scale = gradient.abs().flatten(1).mean(1).clamp(min=1e-30).view(-1, 1, 1, 1)
            memory = decay * memory + gradient / scale
            x_adv = (x_adv + eps / max_iter * memory.sign()).clamp(0, 1)
    return AttackResult(x_adv, network.forwards, network.backwards)
