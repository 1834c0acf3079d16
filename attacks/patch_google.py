"""The adversarial patch (Brown et al. 2017, arXiv:1712.09665): one patch for every image, place and pose."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Evaluator
from attacks.patches import (
    Placement,
    Placing,
    Scene,
    check_patchable,
    check_settings,
    craft,
    crafting_set,
    fooling_rate,
    grey_patch,
    universal_result,
)
from attacks.result import AttackResult


@torch.no_grad()
def google_patch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 6,
    placement: Placement = "random",
    row: int = 3,
    column: int = 3,
    opacity: float = 1.0,
    rotation: float = 22.5,
    scale_min: float = 0.9,
    scale_max: float = 1.1,
    learning_rate: float = 0.05,
    max_iter: int = 500,
    batch_size: int = 64,
    targets: Tensor | None = None,
    craft_on: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> AttackResult:
    """The adversarial patch (Brown et al. 2017): Adam on the expected cross-entropy over images and poses.

    Each step draws images, and for each of them a place, an angle and a scale (expectation over
    transformation). The images returned carry the patch upright and at its own size. While it is crafted,
    a turned or enlarged patch may reach beyond its square, also into the centre box or over the border.

    Args:
        size: side of the patch in pixels; 6 covers 3.5 % of an image of 32×32.
        placement: ``corners`` (clear of the centre box in height and in width), ``random`` (anywhere clear
            of it), ``anywhere``, or ``fixed`` at `row` and `column`; the box is `attacks.patches.centre_box`.
        row, column: top left pixel of a fixed patch.
        opacity: share of the patch in the pixels it covers, in (0, 1].
        rotation: largest angle either way in degrees, in [0, 180].
        scale_min, scale_max: range of the patch's scale; 1 is its own size.
        learning_rate: Adam's, for pixels in [0, 1].
        max_iter: steps from a grey patch.
        batch_size: images per step.
        targets: the class to move towards, (n,), all the same; None: away from the labels.
        craft_on: images and labels to craft the patch on; None: `x` and `y` themselves.
        seed: of batches, poses and places; an image's own place is drawn for its position in the batch.

    Raises:
        ValueError: a setting out of range, no place for a patch of this size, or targets of several classes.
    """
    check_settings(
        google_patch,
        {
            "size": size,
            "placement": placement,
            "row": row,
            "column": column,
            "opacity": opacity,
            "rotation": rotation,
            "scale_min": scale_min,
            "scale_max": scale_max,
            "learning_rate": learning_rate,
            "max_iter": max_iter,
            "batch_size": batch_size,
        },
    )
    if scale_min > scale_max:
        raise ValueError(f"attack.scale_min={scale_min} is above attack.scale_max={scale_max}: exchange them")
    check_patchable(x, y, targets)
    images, objective = crafting_set(x, y, targets, craft_on, "cross_entropy")
    placing = Placing.on(images if len(images) else x, size, placement, row, column, opacity)
    generator = Generator(x.device).manual_seed(seed)
    laying = functools.partial(
        _laying, rotation=rotation, scale_min=scale_min, scale_max=scale_max, generator=generator
    )
    with Evaluator(model, images) as network:
        scene = Scene(network, placing, images, objective)
        patch = grey_patch(images, size)
        patch = craft(scene, patch, laying, _adam(patch, learning_rate), batch_size, max_iter, generator)
        return universal_result(scene, x, patch, fooling_rate(scene, patch, seed), seed)


def _laying(
    chosen: Scene, rotation: float, scale_min: float, scale_max: float, generator: Generator
) -> Callable[[Tensor], Tensor]:
    """A patch -> the chosen images with it, each at a random place in a random pose."""
    n, device = len(chosen.images), chosen.images.device
    corners = chosen.placing.draw_many(n, generator)
    angles = torch.empty(n, device=device).uniform_(-rotation, rotation, generator=generator)
    scales = torch.empty(n, device=device).uniform_(scale_min, scale_max, generator=generator)
    return functools.partial(
        chosen.placing.compose_turned, chosen.images, corners=corners, angles=angles, scales=scales
    )


def _adam(start: Tensor, learning_rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(patch, gradient) -> the patch after a step of Adam upwards, in [0, 1]."""
    pixels = start.clone().requires_grad_()
    adam = torch.optim.Adam([pixels], lr=learning_rate, maximize=True)

    def update(patch: Tensor, gradient: Tensor) -> Tensor:
        pixels.copy_(patch).grad = gradient
        adam.step()
        return pixels.detach().clamp(0, 1)

    return update
