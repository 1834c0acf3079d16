"""Jacobian-based Saliency Map Attack (Papernot et al. 2016; seed paper §3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images, one_hot
from attacks.losses import logit
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult
from attacks.selection import shared_random_targets

_PAIR_SCORES = 2**24
"""Pair scores held at a time: 64 MiB."""


@torch.no_grad()
def jsma(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    theta: float = 0.1,
    gamma: float = 1.0,
    variant: Literal["top2", "pairwise"] = "top2",
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Raise two input values at a time until the target is predicted.

    An image is done when its target is predicted, when more than `gamma` of its values have been
    touched, or when no pair is left to choose from. Values only rise, up to 1.

    Args:
        theta: what a chosen value grows by per step, in (0, 1].
        gamma: largest share of input values that may be touched, in (0, 1].
        variant: ``top2``, ART's rule: the two values with the largest gradient of the target logit;
            ``pairwise``, the rule of the original paper: the pair (p, q) with the largest −a·b among
            those with a > 0 > b, where a and b are the summed gradients at p and q of the target
            logit and of all other logits.
        targets: classes to reach, (n,). None: as in ART and the paper one random wrong class for all
            images of a class, drawn with `seed`; any wrong class then counts as evasion.

    Raises:
        ValueError: a parameter out of range, or an unknown variant.
    """
    check_parameters({"theta": theta, "gamma": gamma})
    check_choices(jsma, {"variant": variant})
    check_images(x, y, targets)
    choose_pair = _RULES[variant]
    x_adv = x.clone(memory_format=torch.contiguous_format)  # so that `values` is a view of it
    values = x_adv.flatten(1)
    touched = torch.zeros_like(values, dtype=torch.bool)
    with Evaluator(model, x) as network:
        goals = _shared_targets(network, x, seed) if targets is None else targets
        active = torch.arange(len(x), device=x.device)
        while len(active):
            goal = goals[active]
            pair, usable, predicted = choose_pair(network, x_adv[active], goal)
            going = (predicted != goal) & usable
            active, pair = active[going], pair[going]
            rows = active[:, None]
            touched[rows, pair] = True
            values[rows, pair] = (values[rows, pair] + theta).clamp(max=1)
            within_budget = touched[active].sum(1) / values.shape[1] <= gamma
            active = active[within_budget & (values[active] < 1).any(1)]
    return AttackResult(x_adv, network.forwards, network.backwards)


def _shared_targets(network: Evaluator, x: Tensor, seed: int) -> Tensor:
    logits = network.logits(x)
    return shared_random_targets(logits.argmax(1), logits.shape[1], seed=seed)


def _top_two(network: Evaluator, images: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, gradient = network.gradients(images, logit(goal))
    saliency = gradient.flatten(1).masked_fill_(images.flatten(1) >= 1, float("-inf"))
    pair = saliency.topk(min(2, saliency.shape[1]), dim=1).indices
    return pair, torch.ones_like(goal, dtype=torch.bool), logits.argmax(1)


def _best_pair(network: Evaluator, images: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def others(logits: Tensor, rows: slice) -> Tensor:
        return 1 - one_hot(goal[rows], logits)

    logits, rise, fall = network.gradients(images, logit(goal), others)
    closed = images.flatten(1) >= 1
    rise = rise.flatten(1).masked_fill_(closed, float("-inf"))
    fall = fall.flatten(1).neg().masked_fill_(closed, float("-inf"))
    pair, score = most_salient_pairs(rise, fall)
    return pair, score > 0, logits.argmax(1)


_RULES: dict[str, Callable[[Evaluator, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "top2": _top_two,
    "pairwise": _best_pair,
}


def most_salient_pairs(rise: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs p ≠ q that maximise (rise_p + rise_q)(fall_p + fall_q) with both factors positive.

    The product grows with each of its four terms, so a value that two others exceed in both rise and
    fall is in no best pair: only the first two Pareto fronts need be paired.

    Args:
        rise, fall: (n, values); −inf where a value may not be chosen.

    Returns:
        Pairs (n, 2) and their products (n,), 0 where no pair qualifies.
    """
    candidates = _first_two_fronts(rise, fall)
    size = max(1, int(candidates.sum(1).max()))
    # stable, so that the candidates come first, in order
    index = candidates.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    lacks = ~candidates.gather(1, index)
    rise = rise.gather(1, index).masked_fill_(lacks, float("-inf"))
    fall = fall.gather(1, index).masked_fill_(lacks, float("-inf"))
    best = rise.new_zeros(len(rise))
    pair = index.new_zeros(len(rise), 2)
    for rows in torch.arange(size, device=rise.device).split(max(1, _PAIR_SCORES // (len(rise) * size))):
        a = rise[:, rows, None] + rise[:, None, :]
        b = fall[:, rows, None] + fall[:, None, :]
        scores = torch.where((a > 0) & (b > 0), a * b, 0)
        scores[:, torch.arange(len(rows), device=rows.device), rows] = 0
        score, flat = scores.flatten(1).max(1)
        better = score > best
        best[better] = score[better]
        found = torch.stack([rows[flat // size], flat % size], 1)
        pair[better] = index.gather(1, found)[better]
    return pair, best


def _first_two_fronts(rise: Tensor, fall: Tensor) -> Tensor:
    """Mask (n, values) of the values on the Pareto front of (rise, fall), and on the next one without it."""
    order = rise.argsort(dim=1, descending=True, stable=True)
    left = fall.gather(1, order)
    chosen = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(2):
        highest_before = torch.cat([torch.full_like(left[:, :1], float("-inf")), left.cummax(1).values[:, :-1]], 1)
        front = left > highest_before
        chosen |= front
        left = left.masked_fill(front, float("-inf"))
    return torch.zeros_like(chosen).scatter_(1, order, chosen)
