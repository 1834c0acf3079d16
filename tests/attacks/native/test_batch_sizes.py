"""What is found for an image does not depend on the images attacked beside it."""

from functools import partial

import pytest
import torch

from attacks import boundary, carlini_wagner, fgsm, jsma, pgd, square, uap

CW = partial(carlini_wagner, max_iter=3, binary_search_steps=3, initial_const=1.0, learning_rate=1.0)
PER_IMAGE = {
    "fgsm": partial(fgsm, eps=0.2),
    "jsma": partial(jsma, theta=0.5, gamma=0.02),
    "jsma pairwise": partial(jsma, theta=1.0, gamma=0.02, variant="pairwise"),
    "cw": CW,
    "cw with defects": partial(CW, art_defects=True),
    "cw adam": partial(CW, variant="adam", learning_rate=0.1, max_iter=5),
    "pgd inf": partial(pgd, eps=0.1, max_iter=4),
    "pgd 2": partial(pgd, norm=2, eps=1.0, max_iter=4, loss="margin"),
}
BY_POSITION = {
    "boundary": partial(boundary, max_iter=4),
    "boundary first": partial(boundary, max_iter=4, variant="first"),
    "pgd inf": partial(pgd, eps=0.1, max_iter=3, num_random_init=2),
    "pgd 2": partial(pgd, norm=2, eps=1.0, max_iter=3, num_random_init=2),
    "square": partial(square, eps=0.05, max_iter=120),
}
UAP = {"eps": 0.3, "attacker_eps": 0.2, "max_iter": 1}


@pytest.fixture(params=["FP", "1"])
def batch(request: pytest.FixtureRequest, trained):
    return trained(request.param).first(64)


@pytest.mark.parametrize(("bits", "targeted"), [("FP", True), ("1", False)])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_image_alone_is_attacked_as_among_64(trained, name: str, bits: str, targeted: bool):
    batch = trained(bits).first(64)
    targets = batch.wrong_class if targeted else None
    among = PER_IMAGE[name](batch.model, batch.x, batch.y, targets=targets).x_adv
    assert not torch.equal(among, batch.x)
    for i in (0, 63):
        one = slice(i, i + 1)
        own_target = None if targets is None else targets[one]
        alone = PER_IMAGE[name](batch.model, batch.x[one], batch.y[one], targets=own_target).x_adv
        assert torch.equal(alone, among[one])


@pytest.mark.parametrize("name", BY_POSITION)
def test_random_numbers_belong_to_the_position_in_the_batch(batch, name: str):
    attack = BY_POSITION[name]
    among = attack(batch.model, batch.x, batch.y, seed=3).x_adv
    assert not torch.equal(among, batch.x)
    for n in (1, 3):
        alone = attack(batch.model, batch.x[:n], batch.y[:n], seed=3).x_adv
        # the product of a single proposal with its direction is rounded otherwise
        tolerance = 1e-6 if name.startswith("boundary") else 0
        torch.testing.assert_close(alone, among[:n], rtol=0, atol=tolerance)


def test_a_perturbation_crafted_elsewhere_is_added_to_an_image_alone_as_among_64(batch):
    craft_on = (batch.x[:20], batch.y[:20])
    among = uap(batch.model, batch.x, batch.y, craft_on=craft_on, **UAP).x_adv
    assert not torch.equal(among, batch.x)
    for i in (0, 63):
        alone = uap(batch.model, batch.x[i : i + 1], batch.y[i : i + 1], craft_on=craft_on, **UAP).x_adv
        assert torch.equal(alone, among[i : i + 1])


EVERY = {**PER_IMAGE, **{f"{name}, random": attack for name, attack in BY_POSITION.items()}, "uap": partial(uap, **UAP)}


@pytest.mark.parametrize("name", EVERY)
def test_no_images_give_no_images(batch, name: str):
    result = EVERY[name](batch.model, batch.x[:0], batch.y[:0])
    assert result.x_adv.shape == (0, 1, 28, 28)
    assert result.x_adv.dtype == torch.float32
    assert (result.forwards, result.backwards) == (0, 0)


def test_no_images_are_scored_with_a_perturbation_crafted_on_some(batch):
    result = uap(batch.model, batch.x[:0], batch.y[:0], craft_on=(batch.x, batch.y), **UAP)
    assert result.x_adv.shape == (0, 1, 28, 28)
    assert result.perturbation.count_nonzero() > 0


@pytest.mark.parametrize("name", PER_IMAGE)
def test_images_in_channels_last_layout_are_attacked_alike(make_linear, name: str):
    linear = make_linear(4, (3, 4, 5), 9)
    targets = linear.wrong_class
    plain = PER_IMAGE[name](linear.model, linear.x, linear.y, targets=targets).x_adv
    strided = linear.x.to(memory_format=torch.channels_last)
    x_adv = PER_IMAGE[name](linear.model, strided, linear.y, targets=targets).x_adv
    # vector instructions meet other values of an image, and round the last digit otherwise
    torch.testing.assert_close(x_adv, plain, rtol=0, atol=1e-6)
