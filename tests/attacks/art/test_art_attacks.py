"""What each attack promises, on networks where it can be checked."""

import pytest
import torch
from torch import Tensor

from attacks import per_image_record, summarise
from attacks.art import boundary, carlini_wagner, fgsm, jsma, square, uap


def l2(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


def linf(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).abs().amax(1)


def unchanged(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x == x_adv).flatten(1).all(1)


def record_of(victim, x_adv: Tensor, targets: Tensor | None = None):
    with torch.no_grad():
        clean, adversarial = victim.model(victim.x), victim.model(x_adv)
    return per_image_record(torch.arange(len(victim.x)), victim.y, victim.x, x_adv, clean, adversarial, targets)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3])
def test_fgsm_moves_every_inner_pixel_by_eps(linear, eps: float):
    x_adv = fgsm(linear.model, linear.x, linear.y, eps=eps).x_adv
    torch.testing.assert_close((x_adv - linear.x).abs(), torch.full_like(linear.x, eps), rtol=0, atol=1e-6)


def test_fgsm_stays_in_the_eps_ball_of_images_with_black_and_white(victim):
    x_adv = fgsm(victim.model, victim.x, victim.y, eps=0.1).x_adv
    torch.testing.assert_close(linf(victim.x, x_adv), torch.full((12,), 0.1), rtol=0, atol=1e-6)


def test_fgsm_breaks_a_linear_model_exactly_beyond_the_minimal_distance(linear_pair):
    minimal = linear_pair.model.minimal(linear_pair.x, linear_pair.y, float("inf"))
    assert (minimal > 0).all()
    for i, distance in enumerate(minimal.tolist()):
        x, y = linear_pair.x[i : i + 1], linear_pair.y[i : i + 1]
        assert linear_pair.predict(fgsm(linear_pair.model, x, y, eps=0.99 * distance).x_adv) == y
        assert linear_pair.predict(fgsm(linear_pair.model, x, y, eps=1.01 * distance).x_adv) != y


def test_fgsm_towards_a_class_raises_its_logit(linear):
    targets = linear.wrong_class
    x_adv = fgsm(linear.model, linear.x, linear.y, eps=0.1, targets=targets).x_adv
    before, after = (linear.model(x).log_softmax(1).gather(1, targets[:, None]) for x in (linear.x, x_adv))
    assert (after > before).all()


def test_jsma_raises_the_two_pixels_with_the_largest_weight_of_the_target(linear):
    targets = linear.wrong_class
    x_adv = jsma(linear.model, linear.x, linear.y, theta=0.01, gamma=0.05, targets=targets).x_adv
    for i, target in enumerate(targets):
        expected = set(linear.model.weight[target].topk(2).indices.tolist())
        assert set((x_adv[i] != linear.x[i]).flatten().nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("gamma", [0.01, 0.05])
def test_jsma_only_raises_and_touches_no_more_than_its_share(victim, gamma: float):
    x_adv = jsma(victim.model, victim.x, victim.y, theta=0.5, gamma=gamma, seed=1).x_adv
    assert (x_adv >= victim.x).all()
    assert not unchanged(victim.x, x_adv).any()
    assert (x_adv != victim.x).flatten(1).sum(1).max() <= gamma * 784 + 2


def test_jsma_reaches_the_target_or_goes_to_its_limit(victim):
    targets = victim.wrong_class
    x_adv = jsma(victim.model, victim.x, victim.y, theta=1.0, gamma=0.1, targets=targets).x_adv
    reached = victim.predict(x_adv) == targets
    assert reached.any()
    assert ((x_adv != victim.x).flatten(1).sum(1)[~reached] >= 0.1 * 784).all()


def test_jsma_draws_its_targets_with_the_seed(victim):
    one, same, other = (jsma(victim.model, victim.x, victim.y, theta=1.0, gamma=0.02, seed=s).x_adv for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("eps", [0.15, 0.4])
def test_uap_is_one_bounded_perturbation_for_all_images(victim, eps: float):
    result = uap(victim.model, victim.x, victim.y, eps=eps, attacker_eps=0.2, max_iter=3)
    assert 0 < result.perturbation.abs().max() <= eps + 1e-6
    assert result.perturbation.shape == victim.x.shape[1:]
    torch.testing.assert_close(result.x_adv, (victim.x + result.perturbation).clamp(0, 1), rtol=0, atol=1e-6)


def test_uap_reports_the_share_it_fooled(victim):
    result = uap(victim.model, victim.x, victim.y, eps=0.4, attacker_eps=0.2, max_iter=2)
    fooled = (victim.predict(result.x_adv) != victim.y).float().mean().item()
    assert result.extra["fooling_rate"] == pytest.approx(fooled)
    assert fooled > 0


def test_uap_order_depends_on_the_seed(victim):
    one, same, other = (
        uap(victim.model, victim.x, victim.y, eps=0.4, attacker_eps=0.2, max_iter=1, seed=s).perturbation
        for s in (0, 0, 3)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


CW = {"max_iter": 20, "binary_search_steps": 6, "initial_const": 0.1, "learning_rate": 0.1}


def test_carlini_wagner_comes_close_to_the_minimal_distance(linear):
    x_adv = carlini_wagner(linear.model, linear.x, linear.y, **CW).x_adv
    assert (linear.predict(x_adv) != linear.y).all()
    ratio = l2(linear.x, x_adv) / linear.model.minimal(linear.x, linear.y, 2)
    assert ratio.min() >= 1 - 1e-4
    assert ratio.median() < 1.3


def test_carlini_wagner_keeps_the_margin_asked_for(linear):
    x_adv = carlini_wagner(linear.model, linear.x, linear.y, confidence=0.5, **CW).x_adv
    margin = torch.tensor(record_of(linear, x_adv)["margin"].to_numpy())
    assert (margin <= -0.5 + 1e-4).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_carlini_wagner_returns_success_or_the_clean_image(victim, targeted: bool):
    targets = victim.wrong_class if targeted else None
    x_adv = carlini_wagner(
        victim.model, victim.x, victim.y, targets=targets, max_iter=4, binary_search_steps=4, initial_const=1.0
    ).x_adv
    frame = record_of(victim, x_adv, targets)
    assert frame["success"].tolist() == (~unchanged(victim.x, x_adv)).tolist()
    assert frame["gave_up"].tolist() == (~frame["success"]).tolist()


def test_carlini_wagner_reaches_targets_of_a_linear_model(linear):
    targets = linear.wrong_class
    x_adv = carlini_wagner(linear.model, linear.x, linear.y, targets=targets, **CW).x_adv
    assert torch.equal(linear.predict(x_adv), targets)


def test_boundary_depends_on_its_seed_alone(victim):
    one, same, other = (boundary(victim.model, victim.x[:4], victim.y[:4], max_iter=3, seed=s).x_adv for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("targeted", [False, True])
def test_boundary_returns_success_or_the_clean_image(victim, targeted: bool):
    targets = victim.wrong_class if targeted else None
    x_adv = boundary(victim.model, victim.x, victim.y, max_iter=4, init_size=30, targets=targets).x_adv
    frame = record_of(victim, x_adv, targets)
    changed = ~unchanged(victim.x, x_adv)
    assert x_adv.dtype == torch.float32
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert changed.any()
    assert frame["success"].tolist() == changed.tolist()


def test_boundary_walks_up_to_the_boundary_of_a_linear_model(linear):
    minimal = linear.model.minimal(linear.x, linear.y, 2)
    distances = []
    for max_iter in (1, 10, 60):
        x_adv = boundary(linear.model, linear.x, linear.y, max_iter=max_iter, delta=0.1, epsilon=0.1).x_adv
        assert (linear.predict(x_adv) != linear.y).all()
        distances.append(l2(linear.x, x_adv) / minimal)
    assert all(ratio.min() >= 1 - 1e-4 for ratio in distances)
    assert distances[0].median() > distances[1].median() > distances[2].median()
    assert distances[2].median() < 2


def test_boundary_reaches_targets_of_a_linear_model(linear):
    targets = linear.wrong_class
    x_adv = boundary(linear.model, linear.x, linear.y, max_iter=5, targets=targets).x_adv
    reached = linear.predict(x_adv) == targets
    assert reached.any()
    assert unchanged(linear.x, x_adv)[~reached].all()


def test_boundary_leaves_images_alone_that_are_of_the_target_class(linear):
    x_adv = boundary(linear.model, linear.x, linear.y, max_iter=3, targets=linear.y).x_adv
    assert torch.equal(x_adv, linear.x)


def test_boundary_draws_every_start_with_its_seed(linear_pair):
    """A single noise image is adversarial for about half the images; ART's own unseeded draws must not help."""
    one, again = (
        boundary(linear_pair.model, linear_pair.x, linear_pair.y, max_iter=2, init_size=1, seed=4).x_adv
        for _ in range(2)
    )
    assert torch.equal(one, again)
    assert 0 < unchanged(linear_pair.x, one).sum() < 12


@pytest.mark.parametrize("targeted", [False, True])
def test_boundary_gives_up_on_a_constant_network(constant, targeted: bool):
    targets = constant.wrong_class if targeted else None
    result = boundary(constant.model, constant.x, constant.y, max_iter=5, init_size=7, targets=targets)
    assert torch.equal(result.x_adv, constant.x)
    frame = record_of(constant, result.x_adv, targets)
    assert frame["gave_up"].all()
    figures = summarise(frame)
    assert figures["gave_up"] == 5
    assert figures["adversarial_accuracy"] == 1
    assert "l2" not in figures


@pytest.mark.parametrize("targeted", [False, True])
def test_square_stays_in_the_eps_ball_and_in_range(victim, targeted: bool):
    targets = victim.wrong_class if targeted else None
    x_adv = square(victim.model, victim.x, victim.y, eps=0.1, max_iter=10, targets=targets).x_adv
    assert linf(victim.x, x_adv).max() <= 0.1 + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert not unchanged(victim.x, x_adv).all()


def test_square_breaks_a_linear_model_beyond_the_minimal_distance_alone(linear_pair):
    minimal = linear_pair.model.minimal(linear_pair.x, linear_pair.y, float("inf"))
    for eps in (0.99 * minimal.min().item(), 2 * minimal.max().item()):
        x_adv = square(linear_pair.model, linear_pair.x, linear_pair.y, eps=eps, max_iter=100, p_init=0.3).x_adv
        assert torch.equal(linear_pair.predict(x_adv) != linear_pair.y, minimal < eps)


def test_square_reaches_targets_of_a_linear_model(linear):
    targets = linear.wrong_class
    x_adv = square(linear.model, linear.x, linear.y, eps=0.4, max_iter=100, p_init=0.3, targets=targets).x_adv
    assert torch.equal(linear.predict(x_adv), targets)


def test_square_depends_on_its_seed_alone(victim):
    one, same, other = (square(victim.model, victim.x, victim.y, eps=0.1, max_iter=3, seed=s).x_adv for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("attack", "setting"),
    [
        (fgsm, {"eps": 1.5}),
        (jsma, {"theta": 0}),
        (jsma, {"gamma": -0.1}),
        (uap, {"eps": 0.1, "attacker_eps": 2}),
        (uap, {"eps": 0.1, "delta": 1}),
        (carlini_wagner, {"learning_rate": 0}),
        (carlini_wagner, {"confidence": -1}),
        (boundary, {"init_size": 0}),
        (boundary, {"step_adapt": 1.0}),
        (square, {"eps": 2}),
        (square, {"p_init": 0}),
    ],
)
def test_settings_out_of_range_are_refused_before_the_network_is_asked(attack, setting: dict):
    with pytest.raises(ValueError, match=r"attack\.\w+=\S+ is out of range"):
        attack(None, None, None, **setting)
