"""Jacobian-based Saliency Map Attack (Papernot et al. 2016; seed paper §3.4) as ART runs it."""

from __future__ import annotations

from typing import Literal

from art.attacks.evasion import SaliencyMapMethod
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result, seeded
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult


def jsma(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    theta: float = 0.1,
    gamma: float = 1.0,
    variant: Literal["top2"] = "top2",
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Raise, step by step, the two input values with the largest gradient of the target logit.

    This is ART's rule (its saliency is the target gradient alone, without the other classes and
    without pairs). It stops when the target is predicted, when more than `gamma` of all values have
    been touched, or when none is left below 1.

    Args:
        theta: what a chosen value grows by per step, in (0, 1].
        gamma: largest share of input values that may be touched, in (0, 1].
        targets: classes to reach, (n,). None: as in ART and the paper one random wrong class for all
            images of a class, drawn with `seed`; any wrong class then counts as evasion.
    """
    check_parameters({"theta": theta, "gamma": gamma})
    check_choices(jsma, {"variant": variant})
    check_images(x, y, targets)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        attack = SaliencyMapMethod(estimator, theta=theta, gamma=gamma, batch_size=len(x), verbose=False)
        with seeded(seed):
            x_adv = attack.generate(x.cpu().numpy(), y=None if targets is None else targets.cpu().numpy())
        return as_result(network, x_adv, x)
