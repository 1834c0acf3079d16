"""The pairwise rule of JSMA."""

import importlib

import pytest
import torch
from torch import Tensor

from attacks import jsma

# the attribute of this name in the package is the attack
module = importlib.import_module("attacks.native.jsma")

INF = float("inf")
ROWS = 40


def normal(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, size), torch.randn(ROWS, size)


def tied(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(-2, 3, (ROWS, size)).float(), torch.randint(-2, 3, (ROWS, size)).float()


def partly_closed(size: int) -> tuple[Tensor, Tensor]:
    rise, fall = normal(size)
    closed = torch.rand(ROWS, size) < 0.6
    return rise.masked_fill(closed, -INF), fall.masked_fill(closed, -INF)


def hopeless(size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(ROWS, size), -torch.rand(ROWS, size)


def score_of_all_pairs(rise: Tensor, fall: Tensor) -> Tensor:
    """(rows, size, size); 0 where a pair does not qualify."""
    a, b = rise[:, :, None] + rise[:, None], fall[:, :, None] + fall[:, None]
    scores = torch.where((a > 0) & (b > 0), a * b, 0)
    scores.diagonal(dim1=1, dim2=2).zero_()
    return scores


@pytest.mark.parametrize("size", [2, 5, 30])
@pytest.mark.parametrize("draw", [normal, tied, partly_closed, hopeless])
def test_the_best_pair_is_that_of_a_search_over_all_pairs(draw, size: int):
    torch.manual_seed(size)
    rise, fall = draw(size)
    pair, score = module.most_salient_pairs(rise.clone(), fall.clone())
    everything = score_of_all_pairs(rise, fall)
    assert torch.equal(score, everything.flatten(1).amax(1))
    found = score > 0
    assert found.any() == (draw is not hopeless)
    assert (pair[:, 0] != pair[:, 1])[found].all()
    assert torch.equal(everything[torch.arange(ROWS), pair[:, 0], pair[:, 1]][found], score[found])


@pytest.mark.parametrize("size", [1, 6])
def test_no_pair_is_found_where_all_values_are_closed(size: int):
    closed = torch.full((3, size), -INF)
    assert torch.equal(module.most_salient_pairs(closed, closed.clone())[1], torch.zeros(3))


@pytest.mark.parametrize("draw", [normal, tied, partly_closed])
def test_few_pair_scores_at_a_time_give_the_same_pairs(draw, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    rise, fall = draw(30)
    pair, score = module.most_salient_pairs(rise, fall)
    for at_once in (1, 500):
        monkeypatch.setattr(module, "_PAIR_SCORES", at_once)
        again = module.most_salient_pairs(rise, fall)
        assert torch.equal(again[0], pair)
        assert torch.equal(again[1], score)


@pytest.mark.parametrize("gamma", [0.01, 0.05])
def test_values_only_rise_and_no_more_than_their_share_is_touched(victim, gamma: float):
    x_adv = jsma(victim.model, victim.x, victim.y, theta=0.5, gamma=gamma, variant="pairwise", seed=1).x_adv
    assert (x_adv >= victim.x).all()
    assert x_adv.max() <= 1
    touched = (x_adv != victim.x).flatten(1).sum(1)
    assert touched.min() >= 1
    assert touched.max() <= gamma * 784 + 2


def test_pairs_reach_targets_of_trained_networks(victim):
    targets = victim.wrong_class
    x_adv = jsma(victim.model, victim.x, victim.y, theta=1.0, gamma=0.5, variant="pairwise", targets=targets).x_adv
    assert (victim.predict(x_adv) == targets).sum() >= 6


@pytest.mark.parametrize("variant", ["top2", "pairwise"])
def test_white_images_are_left_alone(linear, variant: str):
    white = torch.ones_like(linear.x)
    y = linear.predict(white)
    x_adv = jsma(linear.model, white, y, variant=variant, targets=(y + 1) % 4).x_adv
    assert torch.equal(x_adv, white)


def test_an_image_without_a_helpful_pair_is_left_alone_at_the_price_of_one_gradient(constant):
    result = jsma(constant.model, constant.x, constant.y, variant="pairwise", targets=constant.wrong_class)
    assert torch.equal(result.x_adv, constant.x)
    assert result.forwards == 5
