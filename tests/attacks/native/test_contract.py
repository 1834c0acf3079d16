"""What holds of every native attack."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attacks
import attacks.art

CW = {"max_iter": 2, "binary_search_steps": 2}
NATIVE = {
    "fgsm": attacks.fgsm,
    "jsma": partial(attacks.jsma, theta=1.0, gamma=0.2),
    "jsma pairwise": partial(attacks.jsma, theta=1.0, gamma=0.2, variant="pairwise"),
    "uap": partial(attacks.uap, attacker_eps=0.2, max_iter=2),
    "cw": partial(attacks.carlini_wagner, **CW),
    "cw adam": partial(attacks.carlini_wagner, variant="adam", **CW),
    "boundary": partial(attacks.boundary, max_iter=2),
    "pgd": partial(attacks.pgd, max_iter=2),
    "pgd, random": partial(attacks.pgd, norm=2, max_iter=2, num_random_init=2),
    "square": partial(attacks.square, max_iter=3),
}
THROUGH_ART = {
    "fgsm": attacks.art.fgsm,
    "jsma": partial(attacks.art.jsma, theta=1.0, gamma=0.2),
    "uap": partial(attacks.art.uap, attacker_eps=0.2, max_iter=2),
    "cw": partial(attacks.art.carlini_wagner, **CW),
    "boundary": partial(attacks.art.boundary, max_iter=2),
    "square": partial(attacks.art.square, max_iter=3),
}
BOTH = {**NATIVE, **{f"{name} through ART": attack for name, attack in THROUGH_ART.items()}}
WITHOUT_GRADIENTS = [both[name] for both in (NATIVE, THROUGH_ART) for name in ("boundary", "square")]

every_attack = pytest.mark.parametrize("attack", NATIVE.values(), ids=NATIVE)
every_backend = pytest.mark.parametrize("attack", BOTH.values(), ids=BOTH)


class Watched(nn.Module):
    """A network with a batch norm, which fails at a given call and notes the images of each."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(4 * 4 * 4, 3)
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


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("fails_at", [None, 0, 1])
@every_attack
def test_the_network_is_left_as_it_was(attack, images, fails_at: int | None):
    model = Watched(fails_at).train()
    model.layers[1].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.bias.requires_grad_(False)
    before = state(model)
    if fails_at is None:
        attack(model, *images)
    else:
        if attack is NATIVE["fgsm"] and fails_at:
            attack(model, *images)  # it asks only once
        with pytest.raises(InterruptedError):
            attack(model, *images)
        assert model.calls == fails_at
    assert state(model) == before
    assert not model.head.bias.requires_grad


@every_attack
def test_a_network_in_training_mode_is_attacked_in_eval_mode(attack, images):
    assert torch.equal(attack(Watched().train(), *images).x_adv, attack(Watched().eval(), *images).x_adv)


@every_attack
def test_attacks_run_where_gradients_are_switched_off(attack, images):
    with torch.no_grad():
        result = attack(Watched(), *images)
    assert torch.equal(result.x_adv, attack(Watched(), *images).x_adv)
    assert not result.x_adv.requires_grad


@every_attack
def test_arguments_and_the_global_generator_are_left_alone(attack, images):
    x, y = images[0].clone(), images[1].clone()
    before = torch.get_rng_state()
    model = Watched()
    torch.set_rng_state(before)
    result = attack(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, images[0])
    assert torch.equal(y, images[1])
    assert result.x_adv.dtype == torch.float32
    assert result.x_adv.data_ptr() != x.data_ptr()


@every_backend
def test_passes_are_counted_in_whole_images(attack, images):
    result = attack(Watched(), *images)
    assert type(result.forwards) is type(result.backwards) is int
    assert result.forwards >= 5
    assert (result.backwards > 0) == (attack not in WITHOUT_GRADIENTS)


def test_fgsm_takes_one_pass_forward_and_one_back(images):
    result = attacks.fgsm(Watched(), *images)
    assert (result.forwards, result.backwards) == (5, 5)


def bad_images() -> dict[str, tuple[Tensor, Tensor, str]]:
    x, y = torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64)
    nan = x.clone()
    nan[2, 0, 3, 3] = torch.nan
    return {
        "float64": (x.double(), y, "x must be float32"),
        "no batch axis": (x[0, 0, 0], y, "x must be float32"),
        "above 1": (x + 0.5, y, r"x must lie in \[0, 1\]"),
        "below 0": (x - 0.5, y, r"x must lie in \[0, 1\]"),
        "nan": (nan, y, r"x must lie in \[0, 1\]"),
        "int32": (x, y.int(), "y must be int64"),
        "float classes": (x, y.float(), "y must be int64"),
        "too few classes": (x, y[:3], r"y must be int64 classes of shape \(4,\)"),
        "one-hot": (x, torch.eye(4, dtype=torch.int64), "y must be int64"),
        "negative": (x, y - 1, "y must be classes from 0 up, not -1"),
    }


@pytest.mark.parametrize(("x", "y", "message"), bad_images().values(), ids=bad_images())
@every_backend
def test_images_that_are_none_are_refused_before_the_network_is_asked(attack, x, y, message: str):
    model = Watched()
    with pytest.raises(ValueError, match=message):
        attack(model, x, y)
    assert model.calls == 0


@pytest.mark.parametrize("name", ["cw", "cw adam", "boundary", "pgd", "square", "uap"])
def test_counts_may_be_numpys(images, name: str):
    counts = {"max_iter": np.int64(2), **({"sample_size": np.int64(20)} if name == "boundary" else {})}
    plain, numpys = (NATIVE[name](Watched(), *images, **more) for more in ({"max_iter": 2}, counts))
    assert torch.equal(plain.x_adv, numpys.x_adv)


@pytest.mark.parametrize("name", ["fgsm", "jsma", "cw", "cw adam", "boundary", "pgd", "square"])
@pytest.mark.parametrize("targets", [torch.zeros(5), torch.zeros(4, dtype=torch.int64)], ids=["float", "too few"])
def test_targets_that_are_none_are_refused(images, name: str, targets: Tensor):
    with pytest.raises(ValueError, match=r"targets must be int64 classes of shape \(5,\)"):
        NATIVE[name](Watched(), *images, targets=targets)


@pytest.mark.parametrize("name", ["fgsm", "jsma", "jsma pairwise", "cw", "cw adam", "pgd", "pgd, random", "square"])
def test_classes_that_the_network_does_not_have_are_refused(images, name: str):
    x, y = images
    with pytest.raises(ValueError, match="class 3 is none of the network's, which are 0 to 2"):
        NATIVE[name](Watched(), x, y, targets=torch.full_like(y, 3))
    if not name.startswith("jsma"):  # which leaves images alone that are no longer of their class
        with pytest.raises(ValueError, match="class 4 is none of the network's, which are 0 to 2"):
            NATIVE[name](Watched(), x, torch.full_like(y, 4))


OUT_OF_RANGE = [
    (attacks.fgsm, "eps", [-0.1, 1.5, float("nan"), "0.1"]),
    (attacks.jsma, "theta", [0, 1.1]),
    (attacks.jsma, "gamma", [0, 2]),
    (attacks.uap, "eps", [-1]),
    (attacks.uap, "attacker_eps", [-0.1, 2]),
    (attacks.uap, "delta", [0, 1]),
    (attacks.uap, "max_iter", [0, 1.5]),
    (attacks.carlini_wagner, "confidence", [-1]),
    (attacks.carlini_wagner, "learning_rate", [0]),
    (attacks.carlini_wagner, "binary_search_steps", [0]),
    (attacks.carlini_wagner, "max_iter", [0]),
    (attacks.carlini_wagner, "initial_const", [0]),
    (attacks.carlini_wagner, "max_halving", [0]),
    (attacks.carlini_wagner, "max_doubling", [0]),
    (attacks.boundary, "max_iter", [0]),
    (attacks.boundary, "delta", [0, 1]),
    (attacks.boundary, "epsilon", [0, 1]),
    (attacks.boundary, "step_adapt", [0, 1]),
    (attacks.boundary, "num_trial", [0]),
    (attacks.boundary, "sample_size", [0]),
    (attacks.boundary, "init_size", [0]),
    (attacks.boundary, "min_epsilon", [-1]),
    (attacks.pgd, "eps", [-0.1, 1.5]),
    (attacks.pgd, "eps_step", [0, -1]),
    (attacks.pgd, "max_iter", [0, 1.5, -1]),
    (attacks.pgd, "num_random_init", [-1, 0.5]),
    (attacks.pgd, "logit_scale", [0]),
    (attacks.square, "eps", [-0.1, 1.5]),
    (attacks.square, "max_iter", [0, 1.5]),
    (attacks.square, "p_init", [0, 1]),
]


@pytest.mark.parametrize(
    ("attack", "name", "value"),
    [
        pytest.param(attack, name, value, id=f"{attack.__name__} {name}={value}")
        for attack, name, values in OUT_OF_RANGE
        for value in values
    ],
)
def test_parameters_out_of_range_are_named(attack, images, name: str, value: object):
    with pytest.raises(ValueError, match=rf"attack\.{name}={value} is out of range"):
        attack(Watched(), *images, **{name: value})


@pytest.mark.parametrize(
    ("attack", "name", "choices"),
    [
        (attacks.jsma, "variant", "top2 or pairwise"),
        (attacks.carlini_wagner, "variant", "line_search or adam"),
        (attacks.boundary, "variant", "closest or first"),
        (attacks.pgd, "norm", "inf or 2"),
        (attacks.pgd, "loss", "cross_entropy or margin"),
        (attacks.art.jsma, "variant", "top2"),
        (attacks.art.carlini_wagner, "variant", "line_search"),
        (attacks.art.carlini_wagner, "art_defects", "True"),
        (attacks.art.boundary, "variant", "closest"),
    ],
)
def test_the_choices_are_named_for_an_unknown_one(attack, images, name: str, choices: str):
    with pytest.raises(ValueError, match=rf"attack\.{name}=other is unknown to {attack.__name__}: use {choices}$"):
        attack(Watched(), *images, **{name: "other"})


@pytest.mark.parametrize("name", NATIVE)
def test_images_that_track_gradients_or_lie_in_another_layout_give_the_same(linear, name: str):
    plain = NATIVE[name](linear.model, linear.x, linear.y).x_adv
    tracking = NATIVE[name](linear.model, linear.x.clone().requires_grad_(), linear.y).x_adv
    assert torch.equal(tracking, plain)
    assert not tracking.requires_grad
    coloured = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    labels = model(coloured).argmax(1)
    swapped = coloured.contiguous(memory_format=torch.channels_last)
    assert torch.equal(NATIVE[name](model, swapped, labels).x_adv, NATIVE[name](model, coloured, labels).x_adv)
