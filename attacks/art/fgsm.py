"""Fast Gradient Sign Method (Goodfellow et al. 2015; seed paper §3.4, eq. 11-12) through ART."""

from __future__ import annotations

from art.attacks.evasion import FastGradientMethod
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_parameters
from attacks.result import AttackResult


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float = 0.3, targets: Tensor | None = None) -> AttackResult:
    """One step of size `eps` in L∞ along the sign of the cross-entropy gradient, clipped to [0, 1].

    Args:
        eps: L∞ size of the step, in [0, 1].
        targets: classes to move towards, (n,); None: away from `y`.
    """
    check_parameters({"eps": eps})
    check_images(x, y, targets)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        attack = FastGradientMethod(estimator, eps=eps, targeted=targets is not None, batch_size=len(x))
        x_adv = attack.generate(x.cpu().numpy(), y=(y if targets is None else targets).cpu().numpy())
        return as_result(network, x_adv, x)
