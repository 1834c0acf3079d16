"""Carlini-Wagner L2 as in the original paper: Adam in tanh space, and a bisection over the constant c."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.evaluation import Evaluator
from attacks.losses import Hinge
from attacks.native.arithmetic import SMOOTHER, column

_LARGEST_CONST = 1e10
_GROWTH = 10  # of c until the first success
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults


def adam_search(
    network: Evaluator,
    x: Tensor,
    goal: Hinge,
    learning_rate: float,
    steps: int,
    max_iter: int,
    initial_const: float,
) -> Tensor:
    """Adversarial images; an image without success is returned clean. Settings as in `attacks.carlini_wagner`."""
    const = torch.full((len(x),), initial_const, device=x.device)
    lower, upper = torch.zeros_like(const), torch.full_like(const, _LARGEST_CONST)
    best_x, best_distance = x.clone(), torch.full_like(const, torch.inf)
    for _ in range(steps):
        active = torch.nonzero(const < _LARGEST_CONST).flatten()
        if not len(active):
            break
        reached = torch.zeros_like(const, dtype=torch.bool)
        # one block after the other, so that Adam's state stays small
        for images in active.split(network.block):
            x_adv, distance = _descend(network, x[images], goal[images], const[images], learning_rate, max_iter)
            reached[images] = distance < torch.inf
            closer = distance < best_distance[images]
            best_distance[images[closer]] = distance[closer]
            best_x[images[closer]] = x_adv[closer]
        upper = torch.where(reached, torch.minimum(upper, const), upper)
        lower = torch.where(reached, lower, torch.maximum(lower, const))
        bracketed = upper < _LARGEST_CONST
        const = torch.where(bracketed, (lower + upper) / 2, const * _GROWTH)
    return best_x


def _descend(
    network: Evaluator, x: Tensor, goal: Hinge, const: Tensor, learning_rate: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """The closest success on the way and its squared distance, infinite where there is none."""
    weight = column(const, x)
    w = torch.atanh((x * 2 - 1) * SMOOTHER)
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    best_x, best_distance = x.clone(), torch.full_like(const, torch.inf)

    def rising(logits: Tensor, rows: slice) -> Tensor:
        part = goal[rows]
        unmet = (part(logits) > 0)[:, None]
        return unmet * (goal.upper(logits, rows) - goal.lower(logits, rows))

    for step in range(1, max_iter + 1):
        tanh_w = torch.tanh(w)
        x_adv = (tanh_w + 1) / 2
        logits, slope = network.gradients(x_adv, rising)
        distance = (x_adv - x).square().flatten(1).sum(1)
        closer = (goal(logits) <= 0) & (distance < best_distance)
        best_distance[closer] = distance[closer]
        best_x[closer] = x_adv[closer]
        gradient = (weight * slope + 2 * (x_adv - x)) * (1 - tanh_w.square()) / 2
        mean.lerp_(gradient, 1 - _BETA1)
        square.lerp_(gradient.square(), 1 - _BETA2)
        corrected = (square / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
        w -= learning_rate / (1 - _BETA1**step) * mean / corrected
    return best_x, best_distance
