"""Square Attack in L∞ (Andriushchenko et al. 2020, arXiv:1912.00049) as ART runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from art.attacks.evasion import SquareAttack
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result, seeded
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_parameters
from attacks.result import AttackResult


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.3,
    max_iter: int = 1000,
    p_init: float = 0.8,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Vertical stripes of ±`eps`, then random squares of ±`eps`, each kept if it lowers the margin.

    ART's variant: stripes are kept only if they help too, one square with its signs is drawn for all
    images together and never touches the last row and column, and each try costs three evaluations.

    Args:
        eps: L∞ radius, above 0 and at most 1.
        max_iter: squares tried per image.
        p_init: share of the image the first squares cover, in (0, 1), and small enough that they fit.
        targets: classes to reach, (n,), which ART has no word for but takes as criterion and loss;
            None: any but `y`.
    """
    parameters = {"eps": eps, "max_iter": max_iter, "p_init": p_init}
    check_parameters(parameters)
    check_images(x, y, targets)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        towards = {} if targets is None else _towards(estimator)
        attack = SquareAttack(
            estimator, norm="inf", nb_restarts=1, batch_size=len(x), verbose=False, **towards, **parameters
        )
        with seeded(seed):
            x_adv = attack.generate(x.cpu().numpy(), y=(y if targets is None else targets).cpu().numpy())
        return as_result(network, x_adv, x)


def _towards(estimator: CountingClassifier) -> dict[str, Callable[..., Any]]:
    """ART's criterion and loss of a targeted attack, both given the targets one-hot."""

    def adv_criterion(logits: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return logits.argmax(1) == goal.argmax(1)

    def loss(x: np.ndarray, goal: np.ndarray) -> np.ndarray:
        logits = estimator.predict(x)
        return np.where(goal > 0, -np.inf, logits).max(1) - logits[goal > 0]

    return {"adv_criterion": adv_criterion, "loss": loss}
