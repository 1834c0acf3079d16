"""What holds of every patch attack."""

import inspect
import typing
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import attacks
from attacks import google_patch, lavan, located_patch, patch_squares, random_patch
from attacks.parameters import RANGES, accepted_parameters, check_choices, check_parameters
from attacks.patches import centre_box

SMALL = {"size": 2, "max_iter": 4}
UNIVERSAL = {
    "lavan": partial(lavan, num_random_init=2, batch_size=3, **SMALL),
    "google": partial(google_patch, batch_size=3, **SMALL),
    "squares, universal": partial(patch_squares, universal=True, batch_size=3, **SMALL),
    "random, universal": partial(random_patch, universal=True, size=2),
}
PER_IMAGE = {
    "lavan, per image": partial(lavan, universal=False, num_random_init=2, **SMALL),
    "lavan, margin": partial(lavan, universal=False, loss="margin", opacity=0.5, num_random_init=0, **SMALL),
    "located": partial(located_patch, num_random_init=2, **SMALL),
    "located, random moves": partial(located_patch, location_search="random", loss="margin", **SMALL),
    "squares": partial(patch_squares, size=2, max_iter=30),
    "squares, monochrome": partial(patch_squares, monochrome=True, **SMALL),
    "random": partial(random_patch, size=2),
}
EVERY = {**UNIVERSAL, **PER_IMAGE}
ASKING = {name: attack for name, attack in EVERY.items() if not name.startswith("random")}
GRADIENT_FREE = {"squares", "squares, universal", "squares, monochrome"}

every_attack = pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
per_image = pytest.mark.parametrize("attack", PER_IMAGE.values(), ids=PER_IMAGE)
universal = pytest.mark.parametrize("attack", UNIVERSAL.values(), ids=UNIVERSAL)
SIDE = 8


class Network(nn.Module):
    """A small network with a batch norm, which fails at a given call."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Tanh(), nn.Flatten())
        self.head = nn.Linear(4 * 6 * 6, 3)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.4, generator=generator)
        self.fails_at = fails_at
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.calls == self.fails_at:
            raise InterruptedError
        self.calls += 1
        return self.head(self.layers(x))


def state(model: nn.Module) -> tuple:
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    buffers = [buffer.tolist() for buffer in model.buffers()]
    return [module.training for module in model.modules()], gradients, buffers, [p.tolist() for p in model.parameters()]


def some(n: int = 7) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Network().eval()(x).argmax(1)


@every_attack
def test_the_images_carry_the_patches_that_are_returned(attack):
    x, y = some()
    result = attack(Network(), x, y)
    opacity = attack.keywords.get("opacity", 1.0)
    patches = result.patch.expand(len(x), -1, -1, -1)
    for image, clean, patch, (row, column) in zip(result.x_adv, x, patches, result.corners.tolist(), strict=True):
        square = (slice(None), slice(row, row + 2), slice(column, column + 2))
        torch.testing.assert_close(image[square], (1 - opacity) * clean[square] + opacity * patch, rtol=0, atol=1e-6)
        outside = torch.ones_like(clean, dtype=torch.bool)
        outside[square] = False
        assert torch.equal(image[outside], clean[outside])
    assert patches.min() >= 0
    assert patches.max() <= 1
    assert result.x_adv.dtype == torch.float32
    assert not result.x_adv.requires_grad
    assert not result.patch.requires_grad


@universal
def test_a_universal_patch_is_one(attack):
    assert attack(Network(), *some()).patch.shape == (2, 2, 2)


@per_image
def test_each_image_has_a_patch_of_its_own(attack):
    patch = attack(Network(), *some()).patch
    assert patch.shape == (7, 2, 2, 2)
    assert len({tuple(one.flatten().tolist()) for one in patch}) > 1


@pytest.mark.parametrize("placement", ["corners", "random"])
@every_attack
def test_the_centre_is_never_covered(attack, placement: str):
    x, y = some(20)
    top, left, bottom, right = centre_box(SIDE, SIDE)
    corners = attack(Network(), x, y, placement=placement).corners
    rows, columns = (corners < torch.tensor([bottom, right])).T & (corners + 2 > torch.tensor([top, left])).T
    assert not (rows & columns if placement == "random" else rows | columns).any()
    assert len(corners.unique(dim=0)) > 3


@per_image
def test_random_numbers_belong_to_the_position_in_the_batch(attack):
    x, y = some(20)
    among = attack(Network(), x, y, seed=3)
    for n in (1, 6):
        alone = attack(Network(), x[:n], y[:n], seed=3)
        assert torch.equal(alone.x_adv, among.x_adv[:n])
        assert torch.equal(alone.patch, among.patch[:n])
        assert torch.equal(alone.corners, among.corners[:n])


@pytest.mark.parametrize("targeted", [False, True])
@every_attack
def test_the_seed_sets_the_outcome(attack, targeted: bool):
    x, y = some()
    targets = torch.ones_like(y) if targeted else None
    one, same, other = (attack(Network(), x, y, targets=targets, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.x_adv, same.x_adv)
    assert torch.equal(one.patch, same.patch)
    assert not torch.equal(one.x_adv, other.x_adv)
    assert not torch.equal(one.corners, other.corners)


@pytest.mark.parametrize("fails_at", [None, 0, 1])
@pytest.mark.parametrize("attack", ASKING.values(), ids=ASKING)
def test_the_network_is_left_as_it_was(attack, fails_at: int | None):
    model = Network(fails_at).train()
    model.layers[1].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.bias.requires_grad_(False)
    before = state(model)
    if fails_at is None:
        attack(model, *some())
    else:
        with pytest.raises(InterruptedError):
            attack(model, *some())
    assert state(model) == before
    assert not model.head.bias.requires_grad


@every_attack
def test_arguments_and_the_global_generator_are_left_alone(attack):
    x, y = some()
    model, kept = Network(), (x.clone(), y.clone())
    before = torch.get_rng_state()
    result = attack(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert result.x_adv.data_ptr() != x.data_ptr()


@every_attack
def test_training_mode_gradient_mode_and_layout_do_not_matter(attack):
    x, y = some()
    plain = attack(Network().eval(), x, y).x_adv
    assert torch.equal(attack(Network().train(), x, y).x_adv, plain)
    assert torch.equal(attack(Network(), x.clone().requires_grad_(), y).x_adv, plain)
    swapped = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(attack(Network(), swapped, y).x_adv, plain, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(attack(Network(), x, y).x_adv, plain)


@pytest.mark.parametrize("name", ASKING)
def test_passes_are_counted_in_whole_images(name: str):
    result = ASKING[name](Network(), *some())
    assert type(result.forwards) is type(result.backwards) is int
    assert result.forwards >= 7
    assert (result.backwards == 0) == (name in GRADIENT_FREE)


def test_noise_asks_no_network():
    result = random_patch(Network(fails_at=0), *some(), size=2)
    assert (result.forwards, result.backwards) == (0, 0)


@pytest.mark.parametrize("targeted", [False, True])
@every_attack
def test_no_images_give_no_images(attack, targeted: bool):
    x, y = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
    result = attack(nn.Flatten(), x, y, size=3, targets=y if targeted else None)
    assert result.x_adv.shape == x.shape
    assert result.corners.shape == (0, 2)
    assert result.patch.shape[-3:] == (1, 3, 3)
    assert (result.forwards, result.backwards) == (0, 0)


def test_a_patch_that_does_not_fit_is_refused_on_no_images_too():
    with pytest.raises(ValueError, match="size=20 does not fit into images of 8×8"):
        random_patch(nn.Flatten(), torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), size=20)


@pytest.mark.parametrize("name", [name for name in UNIVERSAL if not name.startswith("random")])
def test_no_images_are_scored_with_a_patch_crafted_on_some(name: str):
    x, y = some()
    crafted = UNIVERSAL[name](Network(), x, y).patch
    result = UNIVERSAL[name](Network(), x[:0], y[:0], craft_on=(x, y))
    assert result.x_adv.shape == (0, 2, SIDE, SIDE)
    assert torch.equal(result.patch, crafted)
    aimless = UNIVERSAL[name](Network(), x[:0], y[:0], targets=y[:0], craft_on=(x, y))
    assert (aimless.forwards, aimless.extra) == (0, {"fooling_rate": 0.0})


@pytest.mark.parametrize("attack", ASKING.values(), ids=ASKING)
def test_a_network_that_never_changes_its_mind_is_given_up_on(attack, constant):
    result = attack(constant.model, constant.x, constant.y)
    assert torch.equal(constant.predict(result.x_adv), constant.y)
    assert result.x_adv.isfinite().all()
    assert result.patch.isfinite().all()


class Unstable(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


@every_attack
def test_logits_that_are_no_numbers_give_images_all_the_same(attack):
    result = attack(Unstable(), *some())
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()


@pytest.mark.parametrize("monochrome", [False, True])
@pytest.mark.parametrize("max_iter", [1, 7, 130])
def test_an_image_that_resists_squares_costs_its_queries_and_no_more(constant, max_iter: int, monochrome: bool):
    result = patch_squares(constant.model, constant.x, constant.y, size=2, max_iter=max_iter, monochrome=monochrome)
    assert (result.forwards, result.backwards) == (5 * max_iter, 0)
    assert ((result.patch == 0) | (result.patch == 1)).all()


def test_a_universal_patch_of_squares_costs_its_batch_and_one_check(constant):
    result = patch_squares(
        constant.model, constant.x, constant.y, size=2, max_iter=9, universal=True, batch_size=4, craft_on=None
    )
    assert (result.forwards, result.backwards) == (9 * 4 + 5, 0)


def test_monochrome_patches_are_of_one_colour_of_the_cube():
    patch = patch_squares(Network(), *some(), size=3, max_iter=50, monochrome=True).patch
    assert torch.equal(patch, patch[:, :, :1, :1].expand_as(patch))
    assert ((patch == 0) | (patch == 1)).all()


@pytest.mark.parametrize("name", [name for name in PER_IMAGE if name in ASKING])
def test_targets_are_reached_where_the_patch_covers_enough(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE * SIDE, 3)).eval()
    x = 0.5 + 0.1 * (some(9)[0] - 0.5)
    y = model(x).argmax(1)
    targets = (y + 1 + torch.arange(9) % 2) % 3
    settings = {"size": 6, "placement": "anywhere", "opacity": 1.0, "max_iter": 60}
    result = PER_IMAGE[name](model, x, y, targets=targets, **settings)
    reached = (model(result.x_adv).argmax(1) == targets).float().mean()
    assert reached == 1 if "monochrome" not in name else reached > 0


@pytest.mark.parametrize("name", [name for name in UNIVERSAL if name in ASKING])
def test_a_universal_patch_drives_all_images_to_its_target(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE * SIDE, 3)).eval()
    x = 0.5 + 0.1 * (some(9)[0] - 0.5)
    place = {"size": 6, "placement": "fixed", "row": 1, "column": 1, "max_iter": 60}
    for target in range(3):
        targets = torch.full((9,), target)
        result = UNIVERSAL[name](model, x, model(x).argmax(1), targets=targets, **place)
        assert (model(result.x_adv).argmax(1) == target).all()
        assert result.extra["fooling_rate"] == 1
        elsewhere = UNIVERSAL[name](
            model, x[:1], model(x[:1]).argmax(1), targets=targets[:1], craft_on=(x, targets), **place
        )
        assert torch.equal(elsewhere.patch, result.patch)


@pytest.mark.parametrize("name", [name for name in UNIVERSAL if name in ASKING])
def test_a_universal_patch_has_one_target(name: str):
    x, y = some()
    with pytest.raises(ValueError, match="a universal patch has one target class"):
        UNIVERSAL[name](Network(), x, y, targets=torch.arange(7) % 3)


@pytest.mark.parametrize("name", ["lavan, per image", "squares"])
def test_images_to_craft_on_are_for_universal_patches(name: str):
    with pytest.raises(ValueError, match=r"leave craft_on out \(attack\.craft=attacked\)"):
        PER_IMAGE[name](Network(), *some(), craft_on=some())


@pytest.mark.parametrize("name", [name for name in UNIVERSAL if name in ASKING])
def test_images_to_craft_on_are_checked(name: str):
    x, y = some()
    for craft_on, message in (
        ((x[..., 1:], y), r"craft_on has images of shape \(2, 8, 7\), x of \(2, 8, 8\)"),
        ((x, y[:3]), r"y must be int64 classes of shape \(7,\)"),
        ((x + 1, y), r"x must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            UNIVERSAL[name](Network(), x, y, craft_on=craft_on)


@pytest.mark.parametrize("name", ASKING)
def test_classes_that_the_network_does_not_have_are_refused(name: str):
    x, y = some()
    with pytest.raises(ValueError, match=r"class 99 is none of the network's"):
        ASKING[name](Network(), x, torch.full_like(y, 99))
    with pytest.raises(ValueError, match=r"class 99 is none of the network's"):
        ASKING[name](Network(), x, y, targets=torch.full_like(y, 99))
    with pytest.raises(ValueError, match=r"targets must be classes from 0 up, not -1"):
        ASKING[name](Network(), x, y, targets=torch.full_like(y, -1))


@every_attack
def test_images_that_are_none_are_refused(attack):
    x, y = some()
    for images, labels, message in (
        (x.double(), y, "x must be float32"),
        (x + 0.5, y, r"x must lie in \[0, 1\]"),
        (x, y[:3], r"y must be int64 classes of shape \(7,\)"),
        (x.flatten(1), y, r"x must be images \(n, channels, height, width\), not \(7, 128\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(Network(), images, labels)
    with pytest.raises(ValueError, match=r"targets must be int64 classes of shape \(7,\)"):
        attack(Network(), x, y, targets=y[:2])


@pytest.mark.parametrize(("size", "message"), [(9, "does not fit into images of 8×8"), (4, "leaves no place beside")])
@every_attack
def test_patches_without_a_place_are_refused(attack, size: int, message: str):
    with pytest.raises(ValueError, match=message):
        attack(Network(), *some(), size=size)


PATCHES = [lavan, google_patch, located_patch, patch_squares, random_patch]
BAD = {
    "size": [0, 2.5],
    "opacity": [0, 1.1],
    "row": [-1],
    "column": [0.5],
    "eps_step": [0, None],
    "max_iter": [0],
    "num_random_init": [-1],
    "batch_size": [0],
    "stride": [0],
    "rotation": [-1, 181],
    "scale_min": [0],
    "scale_max": [-1],
    "learning_rate": [0],
}
CHOICES = {
    "placement": "corners or random or anywhere or fixed",
    "loss": "cross_entropy or margin",
    "location_search": "none or random or full",
    "universal": "True or False",
    "monochrome": "True or False",
    "early_stop": "True or False",
}


@pytest.mark.parametrize("attack", PATCHES)
def test_settings_out_of_range_are_named(attack):
    for name in BAD.keys() & accepted_parameters(attack).keys():
        for value in BAD[name]:
            with pytest.raises(ValueError, match=rf"attack\.{name}={value} is out of range"):
                attack(Network(), *some(), **{name: value})
    for name in CHOICES.keys() & accepted_parameters(attack).keys():
        with pytest.raises(
            ValueError, match=rf"attack\.{name}=other is unknown to {attack.__name__}: use {CHOICES[name]}"
        ):
            attack(Network(), *some(), **{name: "other"})


@pytest.mark.parametrize("attack", PATCHES)
def test_every_setting_has_a_default_in_its_range_and_a_test(attack):
    parameters = inspect.signature(attack).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    check_parameters(defaults)
    check_choices(attack, defaults)
    ranged = defaults.keys() - {"targets", "craft_on", "seed"} - CHOICES.keys()
    assert ranged <= RANGES.keys()
    assert ranged <= BAD.keys()
    assert typing.get_type_hints(attack)["return"] is attacks.AttackResult
    assert attack in vars(attacks).values()


def test_scales_are_in_order():
    with pytest.raises(ValueError, match=r"attack\.scale_min=1\.2 is above attack\.scale_max=1\.1"):
        google_patch(Network(), *some(), size=2, scale_min=1.2)
