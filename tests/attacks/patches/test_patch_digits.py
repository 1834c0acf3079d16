"""On trained networks attacks do more than cover a part of the image."""

from functools import partial

import pytest

from attacks import google_patch, lavan, located_patch, patch_squares, random_patch

UNIVERSAL = {
    "lavan": partial(lavan, max_iter=60, eps_step=0.1),
    "google": partial(google_patch, max_iter=60, learning_rate=0.1),
    "squares, universal": partial(patch_squares, max_iter=60, universal=True),
}
PER_IMAGE = {
    "lavan, per image": partial(lavan, universal=False, max_iter=20, eps_step=0.1, loss="margin"),
    "located": partial(located_patch, max_iter=8, eps_step=0.2, loss="margin"),
    "squares": partial(patch_squares, max_iter=60),
}
SETTINGS = {"size": 8, "placement": "random"}


def share_broken(victim, attack) -> float:
    result = attack(victim.model, victim.x, victim.y, **SETTINGS)
    return (victim.predict(result.x_adv) != victim.y).float().mean().item()


@pytest.mark.parametrize("name", UNIVERSAL)
def test_a_universal_patch_does_far_more_than_noise(trained, name: str):
    digits = trained("FP").first(60)
    assert share_broken(digits, UNIVERSAL[name]) > share_broken(digits, partial(random_patch, universal=True)) + 0.15


@pytest.mark.parametrize("bits", ["FP", "1"])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_image_s_own_patch_does_far_more_than_noise(trained, name: str, bits: str):
    digits = trained(bits).first(60)
    assert share_broken(digits, PER_IMAGE[name]) > share_broken(digits, random_patch) + 0.3


def test_moving_does_more_than_staying(trained):
    digits = trained("FP").first(60)
    still, full = (
        share_broken(digits, partial(located_patch, location_search=search, max_iter=4, eps_step=0.1, loss="margin"))
        for search in ("none", "full")
    )
    assert full > still + 0.1


@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_image_alone_is_attacked_as_among_60(trained, name: str):
    digits = trained("FP").first(60)
    among = PER_IMAGE[name](digits.model, digits.x, digits.y, **SETTINGS).x_adv
    assert among[:1].equal(PER_IMAGE[name](digits.model, digits.x[:1], digits.y[:1], **SETTINGS).x_adv)
