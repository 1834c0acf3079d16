import itertools
import math

import pytest
import torch
from art.attacks.evasion import SquareAttack
from torch import Tensor, nn

from attacks import square
from attacks.native.square import _side


class Recorder(nn.Module):
    """A network that keeps what it is asked and what it answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images: list[Tensor] = []
        self.logits: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.clone())
        self.logits.append(self.model(x))
        return self.logits[-1]


@pytest.fixture(params=["FP", "1"])
def batch(request: pytest.FixtureRequest, trained):
    return trained(request.param).first(30)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of `classes` minus the largest other one, (n,)."""
    others = logits.scatter(1, classes[:, None], -math.inf).amax(1)
    return logits.gather(1, classes[:, None])[:, 0] - others


@pytest.mark.parametrize("targeted", [False, True])
def test_every_value_is_moved_by_eps_up_or_down_within_range(batch, targeted: bool):
    targets = batch.wrong_class if targeted else None
    result = square(batch.model, batch.x, batch.y, eps=0.1, max_iter=20, targets=targets)
    up, down = (batch.x + 0.1).clamp(0, 1), (batch.x - 0.1).clamp(0, 1)
    assert ((result.x_adv == up) | (result.x_adv == down)).all()
    assert (result.x_adv == up).any()
    assert (result.x_adv == down).any()
    assert result.backwards == 0


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("targeted", [False, True])
def test_two_classes_break_exactly_beyond_the_minimal_distance(make_linear, targeted: bool, factor: float):
    pair = make_linear(2, (1, 4, 4), 64)
    minimal = pair.model.minimal(pair.x, pair.y, math.inf)
    eps = factor * minimal.median().item()
    x_adv = square(pair.model, pair.x, pair.y, eps=eps, max_iter=600, targets=1 - pair.y if targeted else None).x_adv
    assert torch.equal(pair.predict(x_adv) != pair.y, minimal < eps)


def test_targets_are_reached(make_linear):
    linear = make_linear(4, (3, 4, 4), 16)
    targets = linear.wrong_class
    x_adv = square(linear.model, linear.x, linear.y, eps=0.3, targets=targets).x_adv
    assert torch.equal(linear.predict(x_adv), targets)


def test_the_seed_sets_stripes_and_squares(batch):
    one, same, other = (square(batch.model, batch.x, batch.y, eps=0.1, max_iter=5, seed=s).x_adv for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_image_that_resists_costs_one_query_more_than_squares(constant):
    result = square(constant.model, constant.x, constant.y, max_iter=130)
    assert (result.forwards, result.backwards) == (5 * 131, 0)


def test_an_image_is_asked_for_no_more_after_its_first_success(trained, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attacks.evaluation._MULTIPLE", 1)  # no padding
    victim = trained("FP")
    sevens = victim.y == 7
    network = Recorder(victim.model)
    result = square(network, victim.x[sevens], victim.y[sevens], eps=0.2, max_iter=50)
    left = [int(sevens.sum())]
    for logits in network.logits:
        left.append(int((logits.argmax(1) == 7).sum()))
    assert [len(images) for images in network.images] == [n for n in left[:-1] if n]
    assert result.forwards == sum(left[:-1])
    assert (victim.predict(result.x_adv) == 7).sum() == left[-1] < left[1]


@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_that_resists_is_returned_at_its_best_margin(linear, targeted: bool):
    one, network = linear.first(1), Recorder(linear.model)
    targets = one.wrong_class if targeted else None
    x_adv = square(network, one.x, one.y, eps=1e-3, max_iter=100, targets=targets).x_adv
    goal, sign = (one.y, 1) if targets is None else (targets, -1)
    asked = torch.stack([sign * margin(logits[:1], goal) for logits in network.logits])
    assert len(asked) == 101
    assert asked.min() < asked[0]
    torch.testing.assert_close(sign * margin(one.model(x_adv), goal)[0], asked.min(), rtol=0, atol=1e-6)


class Tie(nn.Module):
    """Class 1 and 2 alike, and class 0 too where the first value is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:, 0] = torch.where(x.flatten(1)[:, 0] > 0.5, 0.0, -1.0)
        return logits


def test_a_success_is_kept_though_the_margin_stays():
    """Networks of few levels tie, and `argmax` takes the first of the classes."""
    x, y = torch.full((12, 1, 2, 2), 0.5), torch.ones(12, dtype=torch.int64)
    x_adv = square(Tie(), x, y, eps=0.1, max_iter=200).x_adv
    assert (Tie()(x_adv).argmax(1) == 0).all()


def test_candidates_are_the_stripes_with_one_square_of_one_sign_per_channel(constant):
    network = Recorder(constant.model)
    x, y = torch.full((8, 3, 6, 6), 0.5), torch.full((8,), 3)
    stripes = square(network, x, y, eps=0.1, max_iter=300).x_adv
    assert (stripes == stripes[:, :, :1]).all()
    touched = torch.zeros(6, 6, dtype=torch.bool)
    signs = set()
    for step, images in enumerate(network.images[1:]):
        side = _side(0.8, step / 300, 6, 6)
        for image, changed in zip(images, images != stripes, strict=True):
            places = changed.any(0).nonzero()
            assert not len(places) or (places.amax(0) - places.amin(0)).max() < side
            values = [channel[differs].unique().tolist() for channel, differs in zip(image, changed, strict=True)]
            assert max(map(len, values)) <= 1
            signs.add(tuple(value > 0.5 for found in values for value in found))
            touched |= changed.any(0)
    assert touched.all()
    assert signs >= set(itertools.product([False, True], repeat=3))


@pytest.mark.parametrize("max_iter", [100, 1000])
def test_squares_shrink_as_those_of_art(max_iter: int):
    schedule = SquareAttack._get_percentage_of_elements
    art = type("Settings", (), {"max_iter": max_iter, "p_init": 0.8})
    wanted = [max(round(math.sqrt(schedule(art, step) * 28 * 28)), 1) for step in range(max_iter)]
    assert [_side(0.8, step / max_iter, 28, 28) for step in range(max_iter)] == wanted
    assert (wanted[0], wanted[-1]) == (25, 1)


@pytest.mark.parametrize(("shape", "side"), [((4, 4), 4), ((1, 9), 1), ((2, 50), 2)])
def test_squares_fit_into_the_image(shape: tuple[int, int], side: int):
    assert _side(0.99, 0.0, *shape) == side


def test_images_without_height_and_width_are_refused(linear):
    with pytest.raises(ValueError, match=r"x must be images \(n, channels, height, width\), not \(12, 16\)"):
        square(linear.model, linear.x.flatten(1), linear.y)
