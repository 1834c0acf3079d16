"""Carlini-Wagner L2 (Carlini & Wagner 2017; seed paper §3.4, eq. 18) as ART runs it."""

from __future__ import annotations

from typing import Literal

from art.attacks.evasion import CarliniL2Method
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult


def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    confidence: float = 0.0,
    learning_rate: float = 0.01,
    binary_search_steps: int = 10,
    max_iter: int = 10,
    initial_const: float = 0.01,
    max_halving: int = 5,
    max_doubling: int = 5,
    variant: Literal["line_search"] = "line_search",
    art_defects: Literal[True] = True,
    targets: Tensor | None = None,
) -> AttackResult:
    """Minimise ‖x_adv − x‖² + c · hinge(logit margin + κ) in tanh space, searching c.

    ART's variant: gradient descent with a line search (not Adam), and a search over c that cannot lower
    it again once it has been doubled. An image without success is returned clean.

    Args:
        confidence: κ, the logit margin asked for.
        learning_rate: first step of the line search.
        binary_search_steps: values of c tried.
        max_iter: descent steps per value of c.
        initial_const: first c.
        max_halving, max_doubling: line search bounds.
        art_defects: the native attack can do without them, ART cannot.
        targets: classes to reach, (n,); None: away from `y`.
    """
    parameters = {
        "confidence": confidence,
        "learning_rate": learning_rate,
        "binary_search_steps": binary_search_steps,
        "max_iter": max_iter,
        "initial_const": initial_const,
        "max_halving": max_halving,
        "max_doubling": max_doubling,
    }
    check_parameters(parameters)
    check_choices(carlini_wagner, {"variant": variant, "art_defects": art_defects})
    check_images(x, y, targets)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        attack = CarliniL2Method(
            estimator, targeted=targets is not None, batch_size=len(x), verbose=False, **parameters
        )
        x_adv = attack.generate(x.cpu().numpy(), y=(y if targets is None else targets).cpu().numpy())
        return as_result(network, x_adv, x)
