"""LAVAN, localised and visible adversarial noise (Karmon et al. 2018, arXiv:1801.02608)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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
    craft,
    crafting_set,
    fooling_rate,
    grey_patch,
    sign_step,
    universal_result,
)
from attacks.result import AttackResult


@torch.no_grad()
def lavan(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 6,
    placement: Placement = "corners",
    row: int = 3,
    column: int = 3,
    opacity: float = 1.0,
    loss: Loss = "cross_entropy",
    eps_step: float = 0.05,
    max_iter: int = 500,
    num_random_init: int = 1,
    universal: bool = True,
    early_stop: bool = True,
    batch_size: int = 64,
    targets: Tensor | None = None,
    craft_on: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> AttackResult:
    """LAVAN (Karmon et al. 2018): noise in [0, 1] confined to a square beside the main object.

    Universal, one patch is crafted on images drawn anew in each step, at places drawn anew; of several
    attempts the one that breaks most crafting images wins. Otherwise each image has a patch of its own,
    at one place per attempt; one that resists has the last patch of its best attempt. Steps follow the
    sign of the gradient, where the paper's follow the gradient.

    Args:
        size: side of the patch in pixels; 6 covers 3.5 % of an image of 32×32.
        placement: ``corners`` (clear of the centre box in height and in width), ``random`` (anywhere clear
            of it), ``anywhere``, or ``fixed`` at `row` and `column`; the box is `attacks.patches.centre_box`.
        row, column: top left pixel of a fixed patch.
        opacity: share of the patch in the pixels it covers, in (0, 1].
        loss: ``cross_entropy``, or ``margin``: largest other logit minus that of the label or target.
        eps_step: step per pixel.
        max_iter: steps per attempt.
        num_random_init: attempts from patches of uniform noise; 0: one from a grey patch.
        universal: one patch for all images.
        early_stop: an image with a patch of its own is finished at its first success; False: all steps are
            made, as for a network other than `model`, or one that draws.
        batch_size: images per step of a universal patch.
        targets: classes to move towards, (n,), all the same for a universal patch; None: away from `y`.
        craft_on: images and labels to craft a universal patch on; None: `x` and `y` themselves.
        seed: of patches and places; an image's own are drawn for its position in the batch.

    Raises:
        ValueError: a setting out of range, no place for a patch of this size, targets of several classes
            for a universal patch, or `craft_on` for patches that are not universal.
    """
    check_settings(
        lavan,
        {
            "size": size,
            "placement": placement,
            "row": row,
            "column": column,
            "opacity": opacity,
            "loss": loss,
            "eps_step": eps_step,
            "max_iter": max_iter,
            "num_random_init": num_random_init,
            "universal": universal,
            "early_stop": early_stop,
            "batch_size": batch_size,
        },
    )
    check_patchable(x, y, targets)
    images, objective = crafting_set(x, y, targets, craft_on, loss, universal=universal)
    placing = Placing.on(images if len(images) else x, size, placement, row, column, opacity)
    with Evaluator(model, images) as network:
        scene = Scene(network, placing, images, objective)
        if not universal:
            attempt = functools.partial(_attempt, eps_step=eps_step, max_iter=max_iter, early_stop=early_stop)
            return attack_each(scene, num_random_init, seed, attempt, early_stop=early_stop)
        patch, rate = _best_of(scene, num_random_init, seed, eps_step, batch_size, max_iter)
        return universal_result(scene, x, patch, rate, seed)


def _attempt(
    scene: Scene,
    patch: Tensor,
    corners: Tensor,
    _: Sequence[Generator],
    *,
    eps_step: float,
    max_iter: int,
    early_stop: bool,
) -> Best:
    """Move `patch` (n, c, k, k) in place; with `early_stop` one stays where it first breaks its image."""
    active = torch.arange(len(patch), device=patch.device)
    for _step in range(max_iter):
        if not len(active):
            break
        part = scene[active]
        logits, gradient = part.gradients(part.lay(corners[active]), patch[active])
        if early_stop:
            going = ~part.objective.reached(logits)
            active, gradient = active[going], gradient[going]
        patch[active] = sign_step(patch[active], gradient, eps_step)
    return scene.evaluate(patch, corners)


def _best_of(
    scene: Scene, num_random_init: int, seed: int, eps_step: float, batch_size: int, max_iter: int
) -> tuple[Tensor, float]:
    """The universal patch of the best attempt, and the share of crafting images it breaks."""
    grey = grey_patch(scene.images, scene.placing.size)
    generator = Generator(grey.device).manual_seed(seed)
    update = functools.partial(sign_step, step=eps_step)

    def laying(chosen: Scene) -> Callable[[Tensor], Tensor]:
        return chosen.lay(chosen.placing.draw_many(len(chosen.images), generator))

    best, highest = grey, -1.0
    for _ in range(max(1, num_random_init)):
        start = grey.clone().uniform_(generator=generator) if num_random_init else grey
        patch = craft(scene, start, laying, update, batch_size, max_iter, generator)
        rate = fooling_rate(scene, patch, seed)
        if rate > highest:
            best, highest = patch, rate
    return best, highest
