"""Gradient-free patches: a light form of PatchAttack (Yang et al. 2020, arXiv:2004.05682)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Evaluator
from attacks.native.randomness import per_image_generators
from attacks.patches import (
    Best,
    Placement,
    Placing,
    Scene,
    check_patchable,
    check_settings,
    crafting_set,
    fill_uniform,
    fooling_rate,
    grey_patch,
    per_image_result,
    universal_result,
)
from attacks.result import AttackResult

# Share of the queries that try whole patches of one colour before squares are painted into the best.
_MONOCHROME_SHARE = 0.2

# Share of the later queries that move the patch instead, and by how many pixels at most.
_MOVING_SHARE = 0.25
_FARTHEST = 2

# Queries whose random numbers an image's generator draws at a time.
_DRAWN_AHEAD = 100

Score = Callable[[Tensor, Tensor, Tensor], Best]
"""(searches (k,), their patches (k, c, s, s), their places (k, 2)) -> what these achieve."""


@torch.no_grad()
def patch_squares(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 6,
    placement: Placement = "random",
    row: int = 3,
    column: int = 3,
    opacity: float = 1.0,
    max_iter: int = 1000,
    monochrome: bool = False,
    universal: bool = False,
    early_stop: bool = True,
    batch_size: int = 64,
    targets: Tensor | None = None,
    craft_on: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> AttackResult:
    """PatchAttack (Yang et al. 2020) made light: random search by scores, without gradients and textures.

    First patches of one colour are tried at random places; then squares of one colour are painted into
    the best patch, or it is moved. Colours are corners of the colour cube. What raises the margin of
    another class over the label, or of the target over the others, is kept.

    Args:
        size: side of the patch in pixels; 6 covers 3.5 % of an image of 32×32.
        placement: where a patch may lie: ``corners`` (clear of the centre box in height and in width),
            ``random`` (anywhere clear of it), ``anywhere``, or ``fixed`` at `row` and `column`; the box is
            `attacks.patches.centre_box`.
        row, column: top left pixel of a fixed patch.
        opacity: share of the patch in the pixels it covers, in (0, 1].
        max_iter: queries per image, the first patch's among them.
        monochrome: patches of one colour to the end, the paper's monochrome attack by random search.
        universal: one patch for all images, by its mean margin over `batch_size` crafting images, each with
            a place of its own that stays; all queries are made.
        early_stop: an image with a patch of its own is finished at its first success; False: all queries are
            made, as for a network other than `model`, or one that draws.
        batch_size: images a universal patch is scored on.
        targets: classes to reach, (n,), all the same for a universal patch; None: any but `y`.
        craft_on: images and labels to craft a universal patch on; None: `x` and `y` themselves.
        seed: of colours, squares and places, drawn for each image apart unless the patch is universal.

    Raises:
        ValueError: a setting out of range, no place for a patch of this size, targets of several classes
            for a universal patch, or `craft_on` for patches that are not universal.
    """
    check_settings(
        patch_squares,
        {
            "size": size,
            "placement": placement,
            "row": row,
            "column": column,
            "opacity": opacity,
            "max_iter": max_iter,
            "monochrome": monochrome,
            "universal": universal,
            "early_stop": early_stop,
            "batch_size": batch_size,
        },
    )
    check_patchable(x, y, targets)
    images, objective = crafting_set(x, y, targets, craft_on, "margin", universal=universal)
    placing = Placing.on(images if len(images) else x, size, placement, row, column, opacity)
    whole = max_iter if monochrome else math.ceil(_MONOCHROME_SHARE * max_iter)
    with Evaluator(model, images) as network:
        scene = Scene(network, placing, images, objective)
        if universal:
            patch = _universal(scene, whole, max_iter, batch_size, seed)
            return universal_result(scene, x, patch, fooling_rate(scene, patch, seed), seed)
        generators = per_image_generators(seed, len(x), x.device)
        grey = grey_patch(x, size)

        def score(rows: Tensor, patch: Tensor, corners: Tensor) -> Best:
            return scene[rows].evaluate(patch, corners)

        best = _search(score, placing, grey, generators, whole, max_iter, early_stop=early_stop)
        return per_image_result(scene, best)


def _universal(scene: Scene, whole: int, max_iter: int, batch_size: int, seed: int) -> Tensor:
    """The patch (c, k, k) of the highest mean margin over a batch of crafting images."""
    grey = grey_patch(scene.images, scene.placing.size)
    n = len(scene.images)
    if not n:
        return grey
    generator = Generator(grey.device).manual_seed(seed)
    batch = scene[torch.randperm(n, generator=generator, device=grey.device)[:batch_size]]
    spots = scene.placing.draw_many(len(batch.images), generator)

    def score(_: Tensor, patch: Tensor, corners: Tensor) -> Best:
        mean = batch.evaluate(patch[0], spots).value.mean()[None]
        return Best(patch, corners, mean, torch.zeros_like(mean, dtype=torch.bool))

    nowhere_else = Placing(scene.placing.allowed.new_ones(1, 1), scene.placing.size, scene.placing.opacity)
    return _search(score, nowhere_else, grey, [generator], whole, max_iter, early_stop=False).patch[0]


def _search(
    score: Score,
    placing: Placing,
    grey: Tensor,
    generators: Sequence[Generator],
    whole: int,
    max_iter: int,
    *,
    early_stop: bool,
) -> Best:
    """The best patch of each search after `max_iter` queries, the first `whole` of them for patches of one colour."""
    best = Best.none(len(generators), grey)
    numbers = torch.empty(len(generators), _DRAWN_AHEAD, 6 + len(grey), device=grey.device)
    active = torch.arange(len(generators), device=grey.device)
    for query in range(max_iter):
        if not len(active):
            break
        if query % _DRAWN_AHEAD == 0:
            fill_uniform(numbers, generators)
        chances = numbers[active, query % _DRAWN_AHEAD]
        if query < whole:
            patch, corners = _one_colour(placing, chances)
        else:
            patch, corners = _changed(placing, best.patch[active], best.corners[active], chances)
        best.update(active, score(active, patch, corners))
        if early_stop:
            active = active[~best.broken[active]]
    return best


def _one_colour(placing: Placing, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (n, c, k, k) of one colour at random places (n, 2)."""
    patch = _colours(chances).expand(-1, -1, placing.size, placing.size)
    return patch, placing.places[_whole(chances[:, 1], len(placing.places))]


def _changed(placing: Placing, patch: Tensor, corners: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """The patches, each either moved a little or with a square of one colour painted into it.

    Args:
        chances: in [0, 1), (n, 6 + c): what is done, the move's row and column, the square's side, top and
            left, and the channels of its colour.
    """
    further = corners + _whole(chances[:, 1:3], 2 * _FARTHEST + 1) - _FARTHEST
    moving = (chances[:, 0] < _MOVING_SHARE) & placing.holds(further) & (further != corners).any(1)
    sides = 1 + _whole(chances[:, 3:4], (placing.size + 1) // 2)
    first = _whole(chances[:, 4:6], placing.size + 1 - sides)
    within = torch.arange(placing.size, device=patch.device)
    rows, columns = ((within >= first[:, i, None]) & (within < first[:, i, None] + sides) for i in (0, 1))
    painted = rows[:, None, :, None] & columns[:, None, None, :] & ~moving[:, None, None, None]
    return torch.where(painted, _colours(chances), patch), torch.where(moving[:, None], further, corners)


def _colours(chances: Tensor) -> Tensor:
    """Corners of the colour cube, (n, c, 1, 1)."""
    return (chances[:, 6:, None, None] < 0.5).float()


def _whole(chances: Tensor, below: int | Tensor) -> Tensor:
    """Whole numbers from 0 to `below` − 1, from numbers in [0, 1)."""
    return (chances.double() * below).long()
