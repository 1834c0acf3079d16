"""Carlini-Wagner L2 (Carlini & Wagner 2017; seed paper §3.4, eq. 18)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.losses import Hinge
from attacks.native.cw_adam import adam_search
from attacks.native.cw_line_search import LineSearch, search_const
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult


@torch.no_grad()
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
    variant: Literal["line_search", "adam"] = "line_search",
    art_defects: bool = False,
    targets: Tensor | None = None,
) -> AttackResult:
    """Minimise ‖x_adv − x‖² + c · hinge(logit margin + κ) in tanh space, searching c for each image.

    An image without success is returned clean.

    Args:
        confidence: κ, the logit margin asked for.
        learning_rate: first step of the line search, or Adam's.
        binary_search_steps: values of c tried.
        max_iter: descent steps per value of c.
        initial_const: first c.
        max_halving, max_doubling: line search bounds.
        variant: ``line_search``, ART's gradient descent; ``adam``, the optimiser and the bisection of c
            of the original paper.
        art_defects: reproduce two defects of ART's line search variant. The lower bound of c is an alias
            of c itself, so that c is never lowered again once it has been doubled; and after a step that
            found no improvement the loss and distance last tried stand for those of the current image.
        targets: classes to reach, (n,); None: away from `y`.

    Raises:
        ValueError: a parameter out of range, or an unknown variant.
    """
    check_parameters(
        {
            "confidence": confidence,
            "learning_rate": learning_rate,
            "binary_search_steps": binary_search_steps,
            "max_iter": max_iter,
            "initial_const": initial_const,
            "max_halving": max_halving,
            "max_doubling": max_doubling,
        }
    )
    check_choices(carlini_wagner, {"variant": variant})
    check_images(x, y, targets)
    goal = Hinge(y if targets is None else targets, targets is not None, confidence)
    with Evaluator(model, x) as network:
        if not len(x):
            x_adv = x.clone()
        elif variant == "adam":
            x_adv = adam_search(network, x, goal, learning_rate, binary_search_steps, max_iter, initial_const)
        else:
            settings = LineSearch(learning_rate, max_iter, max_halving, max_doubling, art_defects)
            x_adv = search_const(network, x, goal, settings, initial_const, binary_search_steps)
    return AttackResult(x_adv, network.forwards, network.backwards)
