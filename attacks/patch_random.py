"""Patches of uniform noise: how far covering a part of the image goes by itself."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from attacks.native.randomness import per_image_generators
from attacks.patches import Placement, Placing, check_patchable, check_settings, fill_uniform, grey_patch
from attacks.result import AttackResult


@torch.no_grad()
def random_patch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 6,
    placement: Placement = "random",
    row: int = 3,
    column: int = 3,
    opacity: float = 1.0,
    universal: bool = False,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """The occlusion control of the patch attacks: noise of [0, 1) where a patch would lie; no network is asked.

    Args:
        size: side of the patch in pixels; 6 covers 3.5 % of an image of 32×32.
        placement: ``corners`` (clear of the centre box in height and in width), ``random`` (anywhere clear
            of it), ``anywhere``, or ``fixed`` at `row` and `column`; the box is `attacks.patches.centre_box`.
        row, column: top left pixel of a fixed patch.
        opacity: share of the patch in the pixels it covers, in (0, 1].
        universal: the same noise on all images.
        targets: as other attacks have them; noise aims at nothing.
        seed: of noise and places, drawn for each image apart unless the noise is universal. Places are
            those that a universal patch of another attack has with this seed.

    Raises:
        ValueError: a setting out of range, or no place for a patch of this size.
    """
    check_settings(
        random_patch,
        {
            "size": size,
            "placement": placement,
            "row": row,
            "column": column,
            "opacity": opacity,
            "universal": universal,
        },
    )
    check_patchable(x, y, targets)
    placing = Placing.on(x, size, placement, row, column, opacity)
    generators = per_image_generators(seed, len(x), x.device)
    corners = placing.draw(generators)
    patch = grey_patch(x, size)
    if universal:
        patch.uniform_(generator=Generator(x.device).manual_seed(seed))
    else:
        patch = patch.repeat(len(x), 1, 1, 1)
        fill_uniform(patch, generators)
    return AttackResult(placing.compose(x, patch, corners), 0, 0, patch=patch, corners=corners)
