"""Attacks named by their ART class."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, DeepFool
from torch import nn

from attacks.art import any_attack, fgsm
from attacks.art.any import check_params, find_attack
from attacks.art.estimator import PyTorchClassifier, seeded

SQUARE = {"class_path": "SquareAttack", "params": {"eps": 0.2, "max_iter": 20}}


def test_the_class_name_stands_for_its_path():
    assert find_attack("DeepFool") is find_attack("art.attacks.evasion.DeepFool") is DeepFool
    assert find_attack("art.attacks.evasion.deepfool.DeepFool") is DeepFool


def test_it_is_the_attack_of_the_project_where_that_has_one(victim):
    for targets in (None, victim.wrong_class):
        ours = fgsm(victim.model, victim.x, victim.y, eps=0.2, targets=targets)
        theirs = any_attack(
            victim.model, victim.x, victim.y, class_path="FastGradientMethod", params={"eps": 0.2}, targets=targets
        )
        assert torch.equal(ours.x_adv, theirs.x_adv)
        assert (ours.forwards, ours.backwards) == (theirs.forwards, theirs.backwards)


def test_parameters_go_to_the_constructor(victim):
    for eps in (0.05, 0.2):
        x_adv = any_attack(
            victim.model, victim.x, victim.y, class_path="SquareAttack", params={"eps": eps, "max_iter": 5}
        ).x_adv
        assert (x_adv - victim.x).abs().max() == pytest.approx(eps, abs=1e-6)


def test_it_depends_on_its_seed_alone(victim):
    one, same, other = (any_attack(victim.model, victim.x, victim.y, **SQUARE, seed=s).x_adv for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_adversarial_images_are_those_of_art_by_itself(linear):
    params = {"eps": 0.1, "eps_step": 0.05, "max_iter": 3, "nb_random_init": 1, "batch_size": len(linear.x)}
    classifier = PyTorchClassifier(
        linear.model, nn.CrossEntropyLoss(), input_shape=(1, 4, 4), nb_classes=4, clip_values=(0.0, 1.0)
    )
    with seeded(3):
        theirs = AutoProjectedGradientDescent(classifier, verbose=False, **params).generate(
            linear.x.numpy(), y=linear.y.numpy()
        )
    ours = any_attack(
        linear.model, linear.x, linear.y, class_path="AutoProjectedGradientDescent", params=params, seed=3
    ).x_adv
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-5)
    assert (linear.predict(ours) != linear.y).any()


@pytest.mark.parametrize("class_path", ["ProjectedGradientDescent", "BasicIterativeMethod", "MomentumIterativeMethod"])
def test_iterated_attacks_break_a_linear_model_beyond_the_minimal_distance(linear_pair, class_path: str):
    minimal = float(linear_pair.model.minimal(linear_pair.x, linear_pair.y, float("inf")).max())
    params = {"eps": 1.05 * minimal, "eps_step": minimal / 4, "max_iter": 8}
    x_adv = any_attack(linear_pair.model, linear_pair.x, linear_pair.y, class_path=class_path, params=params).x_adv
    assert (linear_pair.predict(x_adv) != linear_pair.y).all()


@pytest.mark.parametrize(
    ("class_path", "params"),
    [
        ("HopSkipJump", {"max_iter": 1, "max_eval": 10, "init_eval": 5}),
        ("BoundaryAttack", {"max_iter": 1}),
        ("SignOPTAttack", {"max_iter": 1, "num_trial": 5}),
        ("SaliencyMapMethod", {"theta": 1.0}),
    ],
)
def test_without_targets_an_attack_is_untargeted(linear, class_path: str, params: dict):
    x_adv = any_attack(linear.model, linear.x, linear.y, class_path=class_path, params=params).x_adv
    assert (linear.predict(x_adv) != linear.y).float().mean() > 0.5


def test_images_on_which_an_attack_changes_nothing_come_back(constant):
    x_adv = any_attack(constant.model, constant.x, constant.y, class_path="DeepFool", params={"max_iter": 2}).x_adv
    assert torch.equal(x_adv, constant.x)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("Nonsense", "there is no ART attack art.attacks.evasion.Nonsense"),
        ("art.nowhere.DeepFool", "there is no ART attack art.nowhere.DeepFool"),
        ("", "is not an evasion attack of ART"),
        ("art.attacks.poisoning.PoisoningAttackBackdoor", "is not an evasion attack of ART"),
        ("art.attacks.evasion", "is not an evasion attack of ART"),
        ("os.system", "os.system is not an evasion attack of ART"),
    ],
)
def test_what_is_no_evasion_attack_is_refused(class_path: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_attack(class_path)


def test_parameters_an_attack_lacks_are_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"SquareAttack has no parameter epss, x: it has norm, adv_criterion, loss, "):
        check_params(find_attack("SquareAttack"), {"x": 1, "eps": 0.1, "epss": 0.1})


def test_targets_need_a_targeted_form(linear):
    with pytest.raises(ValueError, match="SquareAttack has no targeted form"):
        any_attack(linear.model, linear.x, linear.y, **SQUARE, targets=linear.wrong_class)
