"""Where patches may lie, how they are laid, and how gradients come back to them."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.evaluation import Evaluator
from attacks.native.randomness import per_image_generators
from attacks.patches import Placing, Scene, centre_box, objective_of

RANDOM = torch.Generator()


def images(n: int = 6, channels: int = 3, height: int = 12, width: int = 14) -> Tensor:
    return torch.rand(n, channels, height, width, generator=RANDOM.manual_seed(0))


def placed(x: Tensor, size: int = 4, placement: str = "anywhere", opacity: float = 1.0, row=3, column=3) -> Placing:
    return Placing.on(x, size, placement, row, column, opacity)


def drawn(placing: Placing, n: int, seed: int = 0) -> Tensor:
    return placing.draw(per_image_generators(seed, n, torch.device("cpu")))


def inside(x: Tensor, corners: Tensor, size: int) -> Tensor:
    """Which pixels of the images lie in their patches, (n, 1, h, w)."""
    rows, columns = (torch.arange(side) - corners[:, i, None] for i, side in enumerate(x.shape[2:]))
    within = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None]
    return within[:, None]


@pytest.mark.parametrize("side", [28, 32, 96, 224])
@pytest.mark.parametrize("placement", ["random", "corners"])
def test_no_allowed_place_overlaps_the_centre_and_all_others_are_allowed(side: int, placement: str):
    x = torch.zeros(1, 1, side, side)
    size = 6 * side // 32
    top, left, bottom, right = centre_box(side, side)
    places = placed(x, size, placement).places
    rows = (places[:, 0] < bottom) & (places[:, 0] + size > top)
    columns = (places[:, 1] < right) & (places[:, 1] + size > left)
    assert not (rows & columns).any()
    assert places.min() == 0
    assert places.max() == side - size
    n = side - size + 1
    clear = sum(r + size <= top or r >= bottom for r in range(n))
    assert len(places) == (clear**2 if placement == "corners" else n**2 - (n - clear) ** 2)


def test_the_centre_is_that_of_pbat_scaled_to_the_image():
    assert centre_box(32, 32) == (11, 11, 21, 21)
    assert centre_box(28, 28) == (10, 10, 18, 18)
    assert centre_box(32, 64) == (11, 22, 21, 42)


def test_corners_are_beside_the_centre_in_height_and_in_width():
    places = placed(torch.zeros(1, 3, 32, 32), 6, "corners").places
    assert {tuple(place) for place in places.tolist()} == {
        (row, column) for row in (*range(6), *range(21, 27)) for column in (*range(6), *range(21, 27))
    }


def test_all_places_are_drawn_alike():
    placing = placed(torch.zeros(1, 1, 7, 8), 5)
    expected = 20_000 / len(placing.places)
    many = placing.draw_many(20_000, RANDOM.manual_seed(1))
    counts = torch.zeros(3, 4)
    counts.index_put_((many[:, 0], many[:, 1]), torch.ones(len(many)), accumulate=True)
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()
    assert placing.holds(many).all()
    assert len({tuple(place) for place in drawn(placing, 300).tolist()}) == 12


def test_an_image_s_place_depends_on_its_position_alone():
    placing = placed(torch.zeros(1, 1, 32, 32), 6, "random")
    assert torch.equal(drawn(placing, 20)[:3], drawn(placing, 3))
    assert not torch.equal(drawn(placing, 20), drawn(placing, 20, seed=1))


def test_a_fixed_place_is_the_only_one():
    placing = placed(images(), 4, "fixed", row=8, column=10)
    assert drawn(placing, 3).tolist() == [[8, 10]] * 3


def test_places_outside_the_image_are_not_held():
    placing = placed(torch.zeros(1, 1, 32, 32), 6, "random")
    asked = torch.tensor([[0, 0], [-1, 0], [0, 27], [27, 0], [26, 26], [8, 8], [11, 11], [5, 11]])
    assert placing.holds(asked).tolist() == [True, False, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("size", "placement", "message"),
    [
        (13, "anywhere", r"attack\.size=13 does not fit into images of 12×14: use at most 12"),
        (13, "fixed", r"attack\.size=13 does not fit into images of 12×14"),
        (5, "fixed", r"attack\.row=8 and attack\.column=3 .* beyond an image of 12×14: use at most 7 and 9"),
        (6, "random", r"attack\.size=6 leaves no place beside the centre .*: use at most 5, or attack\.placement=any"),
        (6, "corners", r"attack\.size=6 leaves no place"),
    ],
)
def test_a_patch_without_a_place_is_refused(size: int, placement: str, message: str):
    with pytest.raises(ValueError, match=message):
        placed(images(), size, placement, row=8)


@pytest.mark.parametrize("placement", ["random", "corners", "anywhere"])
@pytest.mark.parametrize("shape", [(12, 12), (28, 28), (31, 31), (50, 50), (8, 32), (32, 8), (20, 31), (31, 20)])
def test_the_largest_size_named_is_the_largest_that_has_a_place(placement: str, shape: tuple[int, int]):
    x = torch.zeros(1, 1, *shape)

    def refused(size: int) -> str:
        try:
            return "" if len(placed(x, size, placement).places) else "no place"
        except ValueError as error:
            return str(error)

    messages = [refused(size) for size in range(1, max(shape) + 2)]
    largest = messages.count("")
    assert not any(messages[:largest])
    named = {re.search(r"at most (\d+)", message).group(1) for message in messages[largest:]}
    assert named == {str(largest)}


@pytest.mark.parametrize("opacity", [1.0, 0.3])
@pytest.mark.parametrize("universal", [True, False])
def test_a_patch_changes_its_square_alone(opacity: float, universal: bool):
    x = images()
    placing = placed(x, opacity=opacity)
    corners = drawn(placing, len(x))
    patch = torch.rand(3, 4, 4) if universal else torch.rand(len(x), 3, 4, 4)
    laid, before = placing.compose(x, patch, corners), x.clone()
    covered = inside(x, corners, 4).expand_as(x)
    assert torch.equal(laid[~covered], x[~covered])
    expected = (1 - opacity) * x[covered].view(6, 3, 4, 4) + opacity * patch
    torch.testing.assert_close(laid[covered].view(6, 3, 4, 4), expected, rtol=0, atol=1e-7)
    assert torch.equal(x, before)


def test_an_opaque_patch_is_laid_bit_for_bit():
    x, patch = images(), torch.rand(3, 4, 4)
    placing = placed(x, placement="fixed", row=8, column=10)
    laid = placing.compose(x, patch, drawn(placing, len(x)))
    assert torch.equal(laid[:, :, 8:, 10:], patch.expand(len(x), -1, -1, -1))


def test_nothing_is_laid_on_no_images():
    x = images(0)
    placing = placed(x, 4, "corners")
    corners = drawn(placing, 0)
    assert corners.shape == (0, 2)
    assert placing.compose(x, torch.rand(3, 4, 4), corners).shape == x.shape
    assert placing.compose(x, torch.rand(0, 3, 4, 4), corners).shape == x.shape


def turned(placing: Placing, x: Tensor, patch: Tensor, corners: Tensor, angle: float = 0.0, scale: float = 1.0):
    n = len(x)
    return placing.compose_turned(x, patch, corners, torch.full((n,), angle), torch.full((n,), scale))


@pytest.mark.parametrize("opacity", [1.0, 0.4])
@pytest.mark.parametrize("universal", [True, False])
def test_an_upright_patch_of_its_own_size_is_laid_plainly(opacity: float, universal: bool):
    x = images()
    placing = placed(x, opacity=opacity)
    corners = drawn(placing, len(x))
    patch = torch.rand(3, 4, 4) if universal else torch.rand(len(x), 3, 4, 4)
    plain = placing.compose(x, patch, corners)
    torch.testing.assert_close(turned(placing, x, patch, corners), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("angle", "quarters"), [(90, 1), (180, 2), (-90, 3)])
@pytest.mark.parametrize("size", [4, 5])
def test_a_patch_is_turned_about_its_centre(angle: float, quarters: int, size: int):
    x, patch = images(), torch.rand(3, size, size)
    placing = placed(x, size)
    corners = drawn(placing, len(x))
    clockwise = patch.rot90(-quarters, (1, 2))
    expected = placing.compose(x, clockwise, corners)
    torch.testing.assert_close(turned(placing, x, patch, corners, angle), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.9, 1.1, 2.0])
@pytest.mark.parametrize("angle", [0.0, 22.5])
def test_a_patch_covers_what_its_scale_says_and_stays_in_range(scale: float, angle: float):
    x = torch.zeros(1, 1, 40, 40)
    placing = placed(x, 8, "fixed", row=16, column=16)
    laid = turned(placing, x, torch.ones(1, 8, 8), torch.tensor([[16, 16]]), angle, scale)
    assert laid.sum() == pytest.approx((8 * scale) ** 2, rel=0.03)
    assert laid.min() >= 0
    assert laid.max() <= 1 + 1e-5
    rows = torch.arange(40) + 0.5
    assert float((laid[0, 0].sum(1) * rows).sum() / laid.sum()) == pytest.approx(20, abs=1e-3)


def test_a_turned_patch_is_cut_off_at_the_border():
    x = torch.zeros(1, 1, 20, 20)
    placing = placed(x, 8, "fixed", row=0, column=0)
    laid = turned(placing, x, torch.ones(1, 8, 8), torch.tensor([[0, 0]]), 0.0, 2.0)
    assert laid.sum() == pytest.approx(12**2, rel=0.1)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("universal", [True, False])
@pytest.mark.parametrize("angle", [None, 20.0])
@pytest.mark.parametrize("targeted", [True, False])
def test_gradients_are_those_of_the_whole_composition(loss: str, universal: bool, angle: float | None, targeted: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 10 * 12, 5)).eval()
    x, y = images(), torch.arange(6) % 5
    targets = (y + 1) % 5 if targeted else None
    placing = placed(x, opacity=0.7)
    corners = drawn(placing, len(x))
    patch = torch.rand(3, 4, 4) if universal else torch.rand(len(x), 3, 4, 4)

    def lay(one: Tensor) -> Tensor:
        if angle is None:
            return placing.compose(x, one, corners)
        return turned(placing, x, one, corners, angle, 1.1)

    with Evaluator(model, x) as network:
        logits, gradient = Scene(network, placing, x, objective_of(y, targets, loss)).gradients(lay, patch)
        assert (network.forwards, network.backwards) == (6, 6)
    leaf = patch.clone().requires_grad_()
    expected_logits = model(lay(leaf))
    goal, sign = (y, 1) if targets is None else (targets, -1)
    if loss == "cross_entropy":
        objective = sign * F.cross_entropy(expected_logits, goal, reduction="sum")
    else:
        own = F.one_hot(goal, 5).bool()
        objective = sign * (expected_logits.masked_fill(own, -math.inf).amax(1) - expected_logits[own]).sum()
    objective.backward()
    torch.testing.assert_close(logits, expected_logits.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3
