import pytest
import torch
from torch import Tensor

from attacks import carlini_wagner
from attacks.evaluation import Evaluator

HARD = {"confidence": 1.0, "max_iter": 3, "binary_search_steps": 2, "initial_const": 0.5, "learning_rate": 0.5}
VARIANTS = {
    "line search": {},
    "line search with defects": {"art_defects": True},
    "adam": {"variant": "adam", "learning_rate": 0.05, "max_iter": 8},
}


def l2(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


def margins(victim, x_adv: Tensor, targets: Tensor | None) -> Tensor:
    """How far the target, or the best wrong class, is ahead of all other classes, (n,)."""
    with Evaluator(victim.model, x_adv) as network:
        logits = network.logits(x_adv)
    goal = victim.y if targets is None else targets
    own = logits.gather(1, goal[:, None])[:, 0]
    ahead = own - logits.scatter(1, goal[:, None], -torch.inf).amax(1)
    return -ahead if targets is None else ahead


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_images_come_back_with_the_margin_asked_for_or_clean(victim, variant: str, targeted: bool):
    targets = victim.wrong_class if targeted else None
    x_adv = carlini_wagner(victim.model, victim.x, victim.y, targets=targets, **{**HARD, **VARIANTS[variant]}).x_adv
    changed = (x_adv != victim.x).flatten(1).any(1)
    assert torch.equal(margins(victim, x_adv, targets) >= 1.0 - 1e-5, changed)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_some_images_succeed_and_some_are_given_up(trained, variant: str):
    victim = trained("FP").first(30)
    x_adv = carlini_wagner(victim.model, victim.x, victim.y, **{**HARD, **VARIANTS[variant]}).x_adv
    assert 0 < (l2(victim.x, x_adv) > 0).sum() < 30


@pytest.mark.parametrize("bits", ["FP", "1"])
def test_without_arts_defects_the_changes_are_smaller_on_average(trained, bits: str):
    victim = trained(bits).first(16)
    settings = {"max_iter": 8, "binary_search_steps": 6, "initial_const": 1.0, "learning_rate": 1.0}
    mended, defective = (
        l2(victim.x, carlini_wagner(victim.model, victim.x, victim.y, art_defects=defects, **settings).x_adv)
        for defects in (False, True)
    )
    assert (mended > 0).sum() >= (defective > 0).sum() >= 12
    both = (mended > 0) & (defective > 0)
    assert mended[both].mean() < defective[both].mean()


@pytest.mark.parametrize("bits", ["FP", "1"])
def test_adam_breaks_every_image_of_a_trained_network_with_the_margin(trained, bits: str):
    victim = trained(bits).first(12)
    settings = {"max_iter": 30, "binary_search_steps": 3, "initial_const": 1.0, "learning_rate": 0.1}
    near, far = (
        carlini_wagner(victim.model, victim.x, victim.y, variant="adam", confidence=confidence, **settings).x_adv
        for confidence in (0.0, 2.0)
    )
    assert (victim.predict(near) != victim.y).all()
    assert margins(victim, far, None).min() >= 2.0 - 1e-5
    assert l2(victim.x, near).mean() < l2(victim.x, far).mean()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_larger_search_finds_no_larger_changes(victim, variant: str):
    settings = {**HARD, "initial_const": 2.0, **VARIANTS[variant]}
    few, many = (
        carlini_wagner(victim.model, victim.x, victim.y, **{**settings, "binary_search_steps": steps}).x_adv
        for steps in (1, 4)
    )
    before, after = l2(victim.x, few), l2(victim.x, many)
    assert (before > 0).any()
    assert (after <= before)[before > 0].all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_constant_network_is_given_up(constant, variant: str):
    x_adv = carlini_wagner(constant.model, constant.x, constant.y, **{**HARD, **VARIANTS[variant]}).x_adv
    assert torch.equal(x_adv, constant.x)
