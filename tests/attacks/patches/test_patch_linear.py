"""Patches on linear models, whose best patch and place are known."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from attacks import google_patch, lavan, located_patch, patch_squares
from attacks.patch_located import LocationSearch
from qnn.switchable import RandomWidth

SIDE = 12
PLACE = {"placement": "fixed", "row": 7, "column": 2}


class Plane(nn.Module):
    """Two classes: logits 0 and `slope`·x − `offset`; the first as long as the offset is not reached."""

    def __init__(self, slope: Tensor, offset: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        other = (x * self.slope).flatten(1).sum(1, keepdim=True) - self.offset
        return torch.cat([torch.zeros_like(other), other], 1)


@dataclass
class Given:
    model: nn.Module
    x: Tensor
    y: Tensor


def noise_plane(offset: float = 8.0) -> Given:
    """A slope of noise, in which the best patch is 1 where the slope is above 0."""
    generator = torch.Generator().manual_seed(0)
    slope = 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
    x = torch.rand(5, 3, SIDE, SIDE, generator=generator)
    return Given(Plane(slope, offset), x, torch.zeros(5, dtype=torch.int64))


def near_the_boundary(n: int = 40) -> Given:
    """Images nearly alike, of which a patch after a step or two breaks some."""
    generator = torch.Generator().manual_seed(0)
    slope = 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
    x = 0.5 + 0.04 * (torch.rand(n, 3, SIDE, SIDE, generator=generator) - 0.5)
    offset = 0.5 * slope.sum().item() + 0.25
    return Given(Plane(slope, offset), x, torch.zeros(n, dtype=torch.int64))


def colour_plane(offset: float = 20.0) -> Given:
    """A slope of one colour all over, in which the best patch has the colour of the slope's signs anywhere."""
    slope = torch.tensor([0.05, -0.05, 0.02]).view(3, 1, 1).expand(3, SIDE, SIDE).clone()
    return Given(Plane(slope, offset), torch.full((5, 3, SIDE, SIDE), 0.5), torch.zeros(5, dtype=torch.int64))


def hill(offset: float = 5.0) -> Given:
    """A slope with one summit, at which the best patch is white, on black images."""
    rows, columns = (torch.exp(-((torch.arange(SIDE) - peak) ** 2) / 20) for peak in (8, 3))
    slope = 0.2 * rows[:, None] * columns
    return Given(Plane(slope[None], offset), torch.zeros(4, 1, SIDE, SIDE), torch.zeros(4, dtype=torch.int64))


def best_place(given: Given, size: int) -> list[int]:
    mass = nn.functional.avg_pool2d(given.model.slope.detach(), size, 1)[0]
    return [int(i) for i in torch.unravel_index(mass.argmax(), mass.shape)]


def optimum(given: Given, size: int) -> Tensor:
    """1 where the slope at `PLACE` is above 0, else 0."""
    row, column = PLACE["row"], PLACE["column"]
    return (given.model.slope[:, row : row + size, column : column + size] > 0).float()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", [partial(lavan, universal=False), partial(located_patch, location_search="none")])
def test_each_image_s_patch_becomes_the_best_corner_of_the_cube(attack, loss: str, targeted: bool):
    given = noise_plane()
    targets = torch.ones_like(given.y) if targeted else None
    result = attack(given.model, given.x, given.y, size=4, loss=loss, max_iter=25, targets=targets, **PLACE)
    assert torch.equal(result.patch, optimum(given, 4).expand(5, -1, -1, -1))
    assert result.corners.tolist() == [[7, 2]] * 5


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "attack", [partial(lavan, batch_size=3), partial(google_patch, rotation=0.0, scale_min=1.0, scale_max=1.0)]
)
def test_a_universal_patch_becomes_the_best_corner_of_the_cube(attack, targeted: bool):
    given = noise_plane()
    targets = torch.ones_like(given.y) if targeted else None
    result = attack(given.model, given.x, given.y, size=4, max_iter=60, targets=targets, **PLACE)
    assert torch.equal(result.patch, optimum(given, 4))


@pytest.mark.parametrize("attack", [lavan, google_patch, partial(patch_squares, universal=True)])
def test_a_universal_patch_has_the_colour_that_counts_anywhere(attack):
    given = colour_plane()
    result = attack(given.model, given.x, given.y, size=3, max_iter=150)
    assert torch.equal(result.patch, torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 3, 3))


@pytest.mark.parametrize("universal", [False, True])
def test_squares_find_the_best_corner_of_the_cube(universal: bool):
    given = noise_plane()
    result = patch_squares(given.model, given.x, given.y, size=3, max_iter=800, universal=universal, **PLACE)
    wanted = optimum(given, 3)
    assert torch.equal(result.patch, wanted if universal else wanted.expand(5, -1, -1, -1))


@pytest.mark.parametrize(
    "attack",
    [
        partial(located_patch, location_search="full", stride=1, max_iter=40),
        partial(located_patch, location_search="random", stride=1, max_iter=150),
        partial(patch_squares, monochrome=True),
        partial(patch_squares, max_iter=400),
    ],
)
def test_the_patch_moves_to_where_it_counts_most(attack):
    given = hill()
    result = attack(given.model, given.x, given.y, size=3, placement="anywhere")
    assert result.corners.tolist() == [best_place(given, 3)] * 4
    assert torch.equal(result.patch, torch.ones(4, 1, 3, 3))


def test_a_patch_that_may_not_move_stays():
    given = hill()
    moving = partial(located_patch, given.model, given.x, given.y, size=3, max_iter=30)
    here = moving(placement="fixed", row=0, column=8)
    assert here.corners.tolist() == [[0, 8]] * 4
    unmoved = moving(placement="random", location_search="none")
    moved = moving(placement="random")
    assert not torch.equal(moved.corners, unmoved.corners)
    places = moved.corners
    box = (places < torch.tensor([8, 8])) & (places + 3 > torch.tensor([4, 4]))
    assert not box.all(1).any()


def test_location_search_pays_what_it_says():
    given = hill(offset=1000.0)
    costs = {
        search: located_patch(
            given.model, given.x, given.y, size=3, placement="anywhere", location_search=search, max_iter=10
        )
        for search in ("none", "random", "full")
    }
    assert costs["none"].forwards == 4 * 11
    assert 4 * 21 <= costs["random"].forwards <= 4 * 31
    assert 4 * 41 <= costs["full"].forwards <= 4 * 61
    assert {result.backwards for result in costs.values()} == {4 * 10}


UNIVERSAL = {
    "lavan": lavan,
    "google": google_patch,
    "squares, universal": partial(patch_squares, universal=True),
}
PER_IMAGE = {
    "lavan, per image": partial(lavan, universal=False),
    "located": located_patch,
    "squares": patch_squares,
}


@pytest.mark.parametrize("attack", [*UNIVERSAL.values(), *PER_IMAGE.values()], ids=[*UNIVERSAL, *PER_IMAGE])
def test_more_steps_never_do_worse(attack):
    given = noise_plane()
    margins = [
        given.model(attack(given.model, given.x, given.y, size=4, max_iter=steps, **PLACE).x_adv)[:, 1].mean().item()
        for steps in (1, 5, 20, 60)
    ]
    assert margins == sorted(margins)
    assert margins[-1] > margins[0]


STOPPING = {
    **{
        f"located, {way}": partial(located_patch, num_random_init=2, location_search=way)
        for way in get_args(LocationSearch)
    },
    "lavan": partial(lavan, num_random_init=2, universal=False),
    "squares": patch_squares,
}


@pytest.mark.parametrize("attack", STOPPING.values(), ids=STOPPING)
def test_stopping_early_breaks_the_same_images_for_less(attack):
    given = near_the_boundary()
    early, late = (attack(given.model, given.x, given.y, size=2, max_iter=6, early_stop=stop) for stop in (True, False))
    logits, further = given.model(early.x_adv), given.model(late.x_adv)
    broken = logits.argmax(1) != given.y
    assert torch.equal(broken, further.argmax(1) != given.y)
    assert 0 < broken.sum() < len(broken)
    assert (further[:, 1] >= logits[:, 1]).all()
    assert (further[broken, 1] > logits[broken, 1]).any()
    assert early.forwards < late.forwards


@pytest.mark.parametrize("attack", STOPPING.values(), ids=STOPPING)
def test_patches_that_only_just_succeed_do_not_on_other_widths(attack):
    given = near_the_boundary()
    slope, offset = given.model.slope.detach(), given.model.offset
    others = [Plane(slope, offset + 0.05 * further) for further in range(5)]
    asked = [
        partial(attack, model, given.x, given.y, size=4, max_iter=60)
        for model in (others[0], RandomWidth(others, seed=0))
    ]
    for made_on in asked:
        early, late = (
            torch.stack([model(made_on(early_stop=stop).x_adv).argmax(1) for model in others]).float().mean()
            for stop in (True, False)
        )
        assert early < late


@pytest.mark.parametrize("attack", [partial(lavan, universal=False), located_patch])
def test_more_restarts_never_break_fewer(attack):
    given = near_the_boundary()
    broken = []
    for restarts in (1, 2, 4, 8):
        x_adv = attack(given.model, given.x, given.y, size=2, max_iter=2, num_random_init=restarts).x_adv
        broken.append(given.model(x_adv).argmax(1) != given.y)
    for fewer, more in itertools.pairwise(broken):
        assert (more | ~fewer).all()
    assert broken[-1].sum() > broken[0].sum() > 0


def test_the_universal_patch_of_the_best_start_wins():
    given = near_the_boundary()
    settings = {"size": 2, "max_iter": 2, "placement": "random"}
    rates = [
        lavan(given.model, given.x, given.y, num_random_init=n, **settings).extra["fooling_rate"] for n in (1, 2, 4, 8)
    ]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0]


@pytest.mark.parametrize("attack", [lavan, google_patch, partial(patch_squares, universal=True)])
def test_a_universal_patch_is_crafted_elsewhere_on_demand(attack):
    given, other = noise_plane(), noise_plane()
    settings = {"size": 3, "max_iter": 15, "seed": 2}
    crafted = attack(given.model, other.x, other.y, **settings)
    scored = attack(given.model, 1 - given.x[:2], given.y[:2], craft_on=(other.x, other.y), **settings)
    assert torch.equal(scored.patch, crafted.patch)
    assert scored.extra == crafted.extra
    assert torch.equal(scored.corners, crafted.corners[:2])


@pytest.mark.parametrize("attack", [lavan, google_patch, partial(patch_squares, universal=True)])
def test_the_share_fooled_is_that_of_the_images_crafted_on(attack):
    given = near_the_boundary()
    result = attack(given.model, given.x, given.y, size=2, max_iter=15)
    assert 0 < result.extra["fooling_rate"] < 1
    broken = (given.model(result.x_adv).argmax(1) == 1).float().mean().item()
    assert result.extra == {"fooling_rate": pytest.approx(broken)}
