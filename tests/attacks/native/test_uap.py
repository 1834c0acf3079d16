import random

import pytest
import torch
from torch import Tensor

from attacks import uap
from attacks.evaluation import Evaluator
from attacks.losses import cross_entropy


@pytest.fixture(params=["FP", "1"])
def batch(request: pytest.FixtureRequest, trained):
    return trained(request.param).first(48)


def one_image_at_a_time(victim, *, eps: float, attacker_eps: float, delta: float, max_iter: int, seed: int) -> Tensor:
    """The algorithm as ART writes it down."""
    orders = random.Random(seed)
    n, noise, fooled = len(victim.x), torch.zeros_like(victim.x[:1]), 0.0
    with Evaluator(victim.model, victim.x) as network:
        for _ in range(max_iter):
            if fooled >= 1 - delta:
                break
            for i in orders.sample(range(n), n):
                image, label = victim.x[i : i + 1], victim.y[i : i + 1]
                shifted = image + noise
                logits, gradient = network.gradients(shifted, cross_entropy(label))
                if logits.argmax(1) != label:
                    continue
                stepped = (shifted + attacker_eps * gradient.sign()).clamp(0, 1)
                stepped = shifted + (stepped - shifted).clamp(-attacker_eps, attacker_eps)
                if network.predict(stepped) != label:
                    noise = (stepped - image).clamp(-eps, eps)
            predicted = network.predict((victim.x + noise).clamp(0, 1))
            fooled = float((predicted != victim.y).float().mean())
    return noise[0]


@pytest.mark.parametrize("eps", [0.25, 10.0])
def test_the_perturbation_grows_as_one_image_at_a_time_would_grow_it(batch, eps: float):
    settings = {"eps": eps, "attacker_eps": 0.1, "delta": 0.2, "max_iter": 2, "seed": 2}
    few = batch.first(30)
    result = uap(few.model, few.x, few.y, **settings)
    assert result.perturbation.abs().max() > 0.1
    assert torch.equal(result.perturbation, one_image_at_a_time(few, **settings))


@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_all_images_get_one_perturbation_within_its_bound(batch, eps: float):
    result = uap(batch.model, batch.x, batch.y, eps=eps, attacker_eps=0.2, max_iter=2)
    assert result.perturbation.shape == (1, 28, 28)
    assert 0 < result.perturbation.abs().max() <= eps + 1e-7
    assert torch.equal(result.x_adv, (batch.x + result.perturbation).clamp(0, 1))


def test_the_share_fooled_is_that_of_the_images_crafted_on(batch):
    elsewhere = (batch.x[:40], batch.y[:40])
    result = uap(batch.model, batch.x[40:], batch.y[40:], attacker_eps=0.2, max_iter=1, craft_on=elsewhere)
    moved = (elsewhere[0] + result.perturbation).clamp(0, 1)
    fooled = (batch.predict(moved) != elsewhere[1]).float().mean().item()
    assert result.extra["fooling_rate"] == pytest.approx(fooled)
    assert fooled > 0


def test_a_perturbation_crafted_elsewhere_does_not_depend_on_the_images_it_is_added_to(batch):
    elsewhere = (batch.x[:40], batch.y[:40])
    settings = {"attacker_eps": 0.2, "max_iter": 1, "seed": 1}
    crafted = uap(batch.model, *elsewhere, **settings).perturbation
    for scored in (slice(40, 48), slice(45, 46)):
        result = uap(batch.model, batch.x[scored], batch.y[scored], craft_on=elsewhere, **settings)
        assert torch.equal(result.perturbation, crafted)
        assert torch.equal(result.x_adv, (batch.x[scored] + crafted).clamp(0, 1))


def test_it_stops_after_the_first_pass_that_fools_enough(batch):
    settings = {"attacker_eps": 0.1, "max_iter": 5, "seed": 0}
    rates = [
        uap(batch.model, batch.x, batch.y, delta=1e-6, **{**settings, "max_iter": passes}).extra["fooling_rate"]
        for passes in range(1, 6)
    ]
    for delta in (0.9, 0.5):
        enough = next(i for i, rate in enumerate(rates, start=1) if rate >= 1 - delta)
        extra = uap(batch.model, batch.x, batch.y, delta=delta, **settings).extra
        assert extra == {"fooling_rate": rates[enough - 1], "passes": enough}


def test_all_passes_are_made_on_demand(batch):
    settings = {"attacker_eps": 0.3, "max_iter": 4, "delta": 0.9}
    assert uap(batch.model, batch.x, batch.y, **settings).extra["passes"] < 4
    assert uap(batch.model, batch.x, batch.y, all_passes=True, **settings).extra["passes"] == 4


def test_the_seed_sets_the_order(batch):
    one, same, other = (
        uap(batch.model, batch.x, batch.y, attacker_eps=0.1, max_iter=1, seed=seed).perturbation for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("eps", [0, -0.1])
def test_an_empty_bound_is_refused(linear, eps: float):
    with pytest.raises(ValueError, match="eps="):
        uap(linear.model, linear.x, linear.y, eps=eps)


def test_labels_crafted_on_must_fit_their_images(linear):
    with pytest.raises(ValueError, match=r"y must be int64 classes of shape \(12,\)"):
        uap(linear.model, linear.x, linear.y, craft_on=(linear.x, linear.y[:3]))
