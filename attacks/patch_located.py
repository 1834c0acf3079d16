"""Patches with an optimised place (Rao, Stutz and Schiele 2020, arXiv:2005.02313), those of PBAT."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Evaluator
from attacks.patches import (
    Best,
    Loss,
    Placement,
    Placing,
    Scene,
    attack_each,
    check_patchable,
    check_settings,
    grey_patch,
    objective_of,
    sign_step,
)
from attacks.result import AttackResult

LocationSearch = Literal["none", "random", "full"]

_DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@torch.no_grad()
def located_patch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 6,
    placement: Placement = "random",
    row: int = 3,
    column: int = 3,
    opacity: float = 1.0,
    loss: Loss = "cross_entropy",
    location_search: LocationSearch = "full",
    stride: int = 2,
    eps_step: float = 0.05,
    max_iter: int = 100,
    num_random_init: int = 1,
    early_stop: bool = True,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """A patch for each image that moves (Rao et al. 2020): sign steps, and moves to where the loss is higher.

    After each step of the patch its place is tried `stride` pixels further on, and taken if the loss
    rises. Of all patches on the way that with the highest loss is kept, one that breaks the image before
    one that does not. A broken image has no further attempts.

    Args:
        size: side of the patch in pixels; 6 covers 3.5 % of an image of 32×32.
        placement: where a patch may start and move to: ``corners`` (clear of the centre box in height and in
            width), ``random`` (anywhere clear of it), ``anywhere``, or ``fixed`` at `row` and `column`;
            the box is `attacks.patches.centre_box`.
        row, column: top left pixel of a fixed patch.
        opacity: share of the patch in the pixels it covers, in (0, 1].
        loss: ``cross_entropy``, or ``margin``: largest other logit minus that of the label or target.
        location_search: ``full`` tries all four directions after each step (five forward passes more),
            ``random`` one of them (two more), ``none`` stays.
        stride: pixels per move.
        eps_step: step per pixel.
        max_iter: steps per attempt.
        num_random_init: attempts from patches of uniform noise and new places, 30 in the paper, each as
            dear as the first; 0: one attempt from a grey patch.
        early_stop: an image is finished at its first success, which makes no difference to how many are
            broken of `model`; False: all steps are made, for the highest loss, as an attack needs that is
            to work on another network, or on one that draws.
        targets: classes to move towards, (n,); None: away from `y`.
        seed: of patches, places and directions, drawn for each image apart.

    Raises:
        ValueError: a setting out of range, or no place for a patch of this size.
    """
    check_settings(
        located_patch,
        {
            "size": size,
            "placement": placement,
            "row": row,
            "column": column,
            "opacity": opacity,
            "loss": loss,
            "location_search": location_search,
            "stride": stride,
            "eps_step": eps_step,
            "max_iter": max_iter,
            "num_random_init": num_random_init,
            "early_stop": early_stop,
        },
    )
    check_patchable(x, y, targets)
    placing = Placing.on(x, size, placement, row, column, opacity)
    attempt = functools.partial(
        _attempt,
        location_search=location_search,
        stride=stride,
        eps_step=eps_step,
        max_iter=max_iter,
        early_stop=early_stop,
    )
    with Evaluator(model, x) as network:
        scene = Scene(network, placing, x, objective_of(y, targets, loss))
        return attack_each(scene, num_random_init, seed, attempt, early_stop=early_stop)


def _attempt(
    scene: Scene,
    patch: Tensor,
    corners: Tensor,
    generators: Sequence[Generator],
    *,
    location_search: LocationSearch,
    stride: int,
    eps_step: float,
    max_iter: int,
    early_stop: bool,
) -> Best:
    """Move `patch` (n, c, k, k) and `corners` (n, 2) in place."""
    active, part = torch.arange(len(patch), device=patch.device), scene
    best = Best.none(len(patch), grey_patch(scene.images, scene.placing.size))
    moves = _moves(location_search, stride, max_iter, generators, patch.device)
    for step in range(max_iter):
        logits, gradient = part.gradients(part.lay(corners[active]), patch[active])
        values, broken = part.objective.values(logits), part.objective.reached(logits)
        best.update(active, Best(patch[active], corners[active], values, broken))
        if early_stop:
            active, gradient = active[~broken], gradient[~broken]
            if not len(active):
                return best
            part = scene[active]
        patch[active] = sign_step(patch[active], gradient, eps_step)
        if location_search != "none":
            tried = moves[active] if location_search == "full" else moves[active, step, None]
            corners[active] = _moved(part, patch[active], corners[active], tried)
    best.update(active, part.evaluate(patch[active], corners[active]))
    return best


def _moves(
    location_search: LocationSearch, stride: int, max_iter: int, generators: Sequence[Generator], device: torch.device
) -> Tensor:
    """Moves to try: all of them in every step, (n, 4, 2), or one in each, (n, steps, 2)."""
    directions = stride * torch.tensor(_DIRECTIONS, device=device)
    if location_search == "full":
        return directions.expand(len(generators), -1, -1)
    drawn = torch.zeros(len(generators), max_iter, dtype=torch.int64, device=device)
    if location_search == "random":
        for row, generator in zip(drawn, generators, strict=True):
            row.random_(len(directions), generator=generator)
    return directions[drawn]


def _moved(scene: Scene, patch: Tensor, corners: Tensor, moves: Tensor) -> Tensor:
    """The best of the places (n, 2) and those a move (n, m, 2) further on that are allowed."""
    best, highest = corners.clone(), scene.evaluate(patch, corners).value
    for move in moves.unbind(1):
        rows = scene.placing.holds(corners + move).nonzero()[:, 0]
        tried = scene[rows].evaluate(patch[rows], (corners + move)[rows])
        higher = tried.value > highest[rows]
        best[rows[higher]], highest[rows[higher]] = tried.corners[higher], tried.value[higher]
    return best
