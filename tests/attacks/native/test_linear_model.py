"""On a linear model the smallest changes that help are known."""

from functools import partial

import pytest
import torch
from torch import Tensor

from attacks import boundary, carlini_wagner, fgsm, jsma, pgd, uap

INF = float("inf")
BY_RADIUS = {
    "fgsm": (fgsm, INF),
    "pgd inf": (partial(pgd, max_iter=5), INF),
    "pgd 2": (partial(pgd, norm=2, max_iter=5), 2),
    "pgd inf, margin": (partial(pgd, max_iter=5, loss="margin"), INF),
    "pgd 2, all steps": (partial(pgd, norm=2, max_iter=5, early_stop=False), 2),
}
CW = {
    "adam": {
        "variant": "adam",
        "learning_rate": 0.005,
        "max_iter": 60,
        "binary_search_steps": 5,
        "initial_const": 0.05,
    },
    "line search": {"learning_rate": 0.1, "max_iter": 15, "binary_search_steps": 7, "initial_const": 0.1},
}

# The attack counts a tie as success, and in another batch a logit may round otherwise.
ON_THE_BOUNDARY = 1e-5

shapes = pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 9)], ids=["3x5x7", "1x1x9"])
numbers = pytest.mark.parametrize("n", [1, 7, 64])


def l2(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


def lead(victim, x_adv: Tensor, classes: Tensor) -> Tensor:
    """By how much the logits of `classes` exceed all others, (n,)."""
    logits = victim.model(x_adv).detach()
    return logits.gather(1, classes[:, None])[:, 0] - logits.scatter(1, classes[:, None], -INF).amax(1)


def assert_no_closer_than(minimal: Tensor, distance: Tensor) -> None:
    assert (distance >= minimal * (1 - 1e-4) - 1e-6).all()


def of_one_class(victim) -> Tensor:
    """Images of class 0: those of class 1, mirrored at the grey image, are of class 0 too."""
    return torch.where((victim.y == 1)[:, None, None, None], 1 - victim.x, victim.x)


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("targeted", [False, True])
@shapes
@numbers
@pytest.mark.parametrize("name", BY_RADIUS)
def test_two_classes_break_exactly_beyond_the_minimal_distance(
    make_linear, name: str, n: int, shape: tuple, targeted: bool, factor: float
):
    attack, norm = BY_RADIUS[name]
    pair = make_linear(2, shape, n)
    minimal = pair.model.minimal(pair.x, pair.y, norm)
    eps = factor * minimal.median().item()
    x_adv = attack(pair.model, pair.x, pair.y, eps=eps, targets=1 - pair.y if targeted else None).x_adv
    assert torch.equal(pair.predict(x_adv) != pair.y, minimal < eps)


@pytest.mark.parametrize("norm", ["inf", 2])
@shapes
def test_pgd_reaches_targets_among_four_classes(make_linear, shape: tuple, norm: str | int):
    linear = make_linear(4, shape, 64)
    eps = 0.3 if norm == "inf" else 1.5
    targets = linear.wrong_class
    x_adv = pgd(linear.model, linear.x, linear.y, norm=norm, eps=eps, max_iter=20, targets=targets).x_adv
    assert torch.equal(linear.predict(x_adv), targets)


@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True), (64, False)])
@shapes
@pytest.mark.parametrize("variant", CW)
def test_carlini_wagner_finds_the_minimal_l2_of_two_classes(
    make_linear, variant: str, n: int, shape: tuple, targeted: bool
):
    pair = make_linear(2, shape, n)
    minimal = pair.model.minimal(pair.x, pair.y, 2)
    targets = 1 - pair.y if targeted else None
    x_adv = carlini_wagner(pair.model, pair.x, pair.y, targets=targets, **CW[variant]).x_adv
    assert lead(pair, x_adv, pair.y).max() < ON_THE_BOUNDARY
    distance = l2(pair.x, x_adv)
    assert_no_closer_than(minimal, distance)
    assert (distance <= minimal * 1.03 + 3e-3).all()


@shapes
@pytest.mark.parametrize("variant", CW)
def test_carlini_wagner_finds_the_nearest_of_four_classes_for_most_images(make_linear, variant: str, shape: tuple):
    linear = make_linear(4, shape, 64)
    x_adv = carlini_wagner(linear.model, linear.x, linear.y, **CW[variant]).x_adv
    minimal, distance = linear.model.minimal(linear.x, linear.y, 2), l2(linear.x, x_adv)
    assert_no_closer_than(minimal, distance)
    assert (distance / minimal).median() < 1.03


@pytest.mark.parametrize("variant", CW)
def test_carlini_wagner_reaches_targets_among_four_classes(make_linear, variant: str):
    linear = make_linear(4, (3, 5, 7), 64)
    targets = linear.wrong_class
    x_adv = carlini_wagner(linear.model, linear.x, linear.y, targets=targets, **CW[variant]).x_adv
    assert lead(linear, x_adv, targets).min() > -ON_THE_BOUNDARY
    assert_no_closer_than(linear.model.minimal(linear.x, linear.y, 2), l2(linear.x, x_adv))


@pytest.mark.parametrize(("n", "targeted"), [(1, False), (7, True), (64, False)])
@shapes
def test_boundary_converges_from_above_to_the_minimal_l2_of_two_classes(
    make_linear, n: int, shape: tuple, targeted: bool
):
    pair = make_linear(2, shape, n)
    minimal = pair.model.minimal(pair.x, pair.y, 2)
    result = boundary(
        pair.model,
        pair.x,
        pair.y,
        max_iter=60,
        delta=0.1,
        epsilon=0.1,
        snapshots=[0, 5, 20, 60],
        targets=1 - pair.y if targeted else None,
    )
    distances = torch.stack([l2(pair.x, images) for images in result.snapshots.values()])
    assert_no_closer_than(minimal, distances)
    medians = (distances / minimal).median(1).values
    assert (medians[1:] < medians[:-1]).all()
    assert medians[-1] < 2


@shapes
@numbers
def test_jsma_raises_the_two_values_with_the_largest_weight_of_the_target(make_linear, n: int, shape: tuple):
    linear = make_linear(4, shape, n)
    targets = linear.wrong_class
    x_adv = jsma(linear.model, linear.x, linear.y, theta=0.01, gamma=1e-3, targets=targets).x_adv
    expected = torch.zeros(n, linear.x[0].numel())
    expected.scatter_(1, linear.model.weight[targets].topk(2).indices, 0.01)
    torch.testing.assert_close((x_adv - linear.x).flatten(1), expected, rtol=0, atol=1e-6)


@shapes
@numbers
def test_pairwise_jsma_raises_the_pair_that_lifts_the_target_and_lowers_the_others(make_linear, n: int, shape: tuple):
    linear = make_linear(4, shape, n)
    targets = linear.wrong_class
    x_adv = jsma(linear.model, linear.x, linear.y, theta=0.01, gamma=1e-3, variant="pairwise", targets=targets).x_adv
    for changed, target in zip((x_adv != linear.x).flatten(1), targets.tolist(), strict=True):
        weight = linear.model.weight.detach()
        rise, fall = weight[target], weight[target] - weight.sum(0)
        a, b = rise[:, None] + rise, fall[:, None] + fall
        scores = torch.where((a > 0) & (b > 0), a * b, 0).fill_diagonal_(0)
        assert set(changed.nonzero().flatten().tolist()) == set(divmod(int(scores.argmax()), len(rise)))


@pytest.mark.parametrize("variant", ["top2", "pairwise"])
def test_jsma_reaches_targets_among_four_classes(make_linear, variant: str):
    linear = make_linear(4, (3, 5, 7), 64)
    targets = linear.wrong_class
    x_adv = jsma(linear.model, linear.x, linear.y, theta=0.1, variant=variant, targets=targets).x_adv
    assert torch.equal(linear.predict(x_adv), targets)


@shapes
@numbers
def test_uap_of_one_class_is_one_step_that_breaks_all_images_nearer_than_its_size(make_linear, n: int, shape: tuple):
    pair = make_linear(2, shape, n)
    x, y = of_one_class(pair), torch.zeros(n, dtype=torch.int64)
    minimal = pair.model.minimal(x, y, INF)
    towards = (pair.model.weight[1] - pair.model.weight[0]).detach().sign().view(shape)
    attacker_eps = 1.01 * minimal.max().item()
    eps = min(1.01 * minimal.median().item(), attacker_eps)
    result = uap(pair.model, x, y, eps=eps, attacker_eps=attacker_eps, max_iter=2)
    torch.testing.assert_close(result.perturbation, eps * towards, rtol=0, atol=1e-6)
    assert torch.equal(pair.predict(result.x_adv) != y, minimal < eps)


@shapes
@numbers
def test_uap_stays_zero_where_no_image_is_as_near_as_one_step(make_linear, n: int, shape: tuple):
    pair = make_linear(2, shape, n)
    step = 0.99 * pair.model.minimal(pair.x, pair.y, INF).min().item()
    result = uap(pair.model, pair.x, pair.y, attacker_eps=step, max_iter=2)
    assert result.perturbation.count_nonzero() == 0
    assert result.extra == {"fooling_rate": 0, "passes": 2}
