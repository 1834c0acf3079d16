import pytest
import torch
from torch import Tensor, nn

from attacks import fgsm, pgd

NORMS = [("inf", 0.1), (2, 1.5)]


def size(change: Tensor, norm: str | int) -> Tensor:
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "inf" else flat.norm(dim=1)


class Saturated(nn.Module):
    """A network whose logits are so far apart that the softmax is 0 and 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


@pytest.fixture(params=["FP", "1"])
def batch(request: pytest.FixtureRequest, trained):
    return trained(request.param).first(30)


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_images_stay_in_the_ball_and_in_range(batch, norm: str | int, eps: float, targeted: bool, restarts: int):
    targets = batch.wrong_class if targeted else None
    x_adv = pgd(
        batch.model, batch.x, batch.y, norm=norm, eps=eps, max_iter=4, num_random_init=restarts, targets=targets
    ).x_adv
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    changed = size(x_adv - batch.x, norm)
    assert changed.max() <= eps * (1 + 1e-5)
    assert changed.min() > 0


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_more_restarts_break_the_same_images_and_more(batch, norm: str | int, eps: float):
    broken = [
        batch.predict(
            pgd(batch.model, batch.x, batch.y, norm=norm, eps=eps, max_iter=2, num_random_init=restarts).x_adv
        )
        != batch.y
        for restarts in (1, 2, 5)
    ]
    assert (broken[0] <= broken[1]).all()
    assert (broken[1] <= broken[2]).all()
    assert broken[0].any()


def test_one_whole_step_is_fgsm(batch):
    one_step = pgd(batch.model, batch.x, batch.y, eps=0.1, eps_step=0.1, max_iter=1).x_adv
    torch.testing.assert_close(one_step, fgsm(batch.model, batch.x, batch.y, eps=0.1).x_adv, rtol=0, atol=1e-7)


def test_many_steps_break_no_fewer_images_than_one(batch):
    many = pgd(batch.model, batch.x, batch.y, eps=0.1, max_iter=10).x_adv
    one = fgsm(batch.model, batch.x, batch.y, eps=0.1).x_adv
    broken, broken_by_one = ((batch.predict(x_adv) != batch.y).sum() for x_adv in (many, one))
    assert broken >= broken_by_one > 0


@pytest.mark.parametrize("norm", ["inf", 2])
def test_steps_are_as_long_as_asked_for(linear, norm: str | int):
    x_adv = pgd(linear.model, linear.x, linear.y, norm=norm, eps=0.2, eps_step=0.03, max_iter=1).x_adv
    torch.testing.assert_close(size(x_adv - linear.x, norm), torch.full((12,), 0.03), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.3), (2, 5.0)])
def test_the_margin_breaks_a_saturated_network_that_cross_entropy_cannot_move(batch, norm: str | int, eps: float):
    model = Saturated(batch.model)
    settings = {"norm": norm, "eps": eps, "max_iter": 10}
    stuck = pgd(model, batch.x, batch.y, **settings).x_adv
    assert torch.equal(stuck, batch.x)
    by_margin = pgd(model, batch.x, batch.y, loss="margin", **settings).x_adv
    assert (batch.predict(by_margin) != batch.y).sum() >= 20


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.3), (2, 5.0)])
def test_scaled_logits_undo_the_saturation(batch, norm: str | int, eps: float):
    settings = {"norm": norm, "eps": eps, "max_iter": 10}
    plain = pgd(batch.model, batch.x, batch.y, **settings).x_adv
    undone = pgd(Saturated(batch.model), batch.x, batch.y, logit_scale=1e-4, **settings).x_adv
    broken, broken_plain = ((batch.predict(x_adv) != batch.y).sum() for x_adv in (undone, plain))
    assert broken_plain >= 20
    assert broken >= broken_plain - 1


def test_early_stop_saves_the_passes_of_broken_images(batch):
    early, whole = (
        pgd(batch.model, batch.x, batch.y, eps=0.2, max_iter=8, early_stop=early_stop) for early_stop in (True, False)
    )
    assert (batch.predict(early.x_adv) != batch.y).any()
    assert early.forwards < whole.forwards == 30 * 9
    assert early.backwards < whole.backwards == 30 * 8


def test_an_image_is_finished_at_its_first_success(batch):
    step = {"eps": 0.3, "eps_step": 0.05}
    finished = pgd(batch.model, batch.x, batch.y, max_iter=6, **step).x_adv
    one_step = pgd(batch.model, batch.x, batch.y, max_iter=1, **step).x_adv
    broken = batch.predict(one_step) != batch.y
    assert broken.any()
    assert torch.equal(finished[broken], one_step[broken])
    assert not torch.equal(finished[~broken], one_step[~broken])


def test_an_image_that_resists_is_returned_at_the_end_of_its_steps(linear):
    x_adv = pgd(linear.model, linear.x, linear.y, eps=1e-5, max_iter=4).x_adv
    resisting = linear.predict(x_adv) == linear.y
    assert resisting.any()
    assert (x_adv != linear.x).flatten(1).any(1).all()


@pytest.mark.parametrize("norm", ["inf", 2])
def test_the_seed_sets_the_restarts(linear, norm: str | int):
    one, same, other = (
        pgd(linear.model, linear.x, linear.y, norm=norm, eps=0.01, max_iter=1, num_random_init=1, seed=seed).x_adv
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_without_restarts_the_seed_does_not_matter(linear):
    one, other = (pgd(linear.model, linear.x, linear.y, eps=0.01, seed=seed).x_adv for seed in (0, 1))
    assert torch.equal(one, other)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_targets_are_reached(batch, loss: str):
    targets = batch.wrong_class
    x_adv = pgd(batch.model, batch.x, batch.y, eps=0.4, max_iter=20, loss=loss, targets=targets).x_adv
    assert (batch.predict(x_adv) == targets).sum() >= 15


def test_an_l2_ball_may_be_larger_than_1(linear):
    x_adv = pgd(linear.model, linear.x, linear.y, norm=2, eps=1.2, max_iter=3, early_stop=False).x_adv
    assert size(x_adv - linear.x, 2).max() > 1


class Flat(nn.Module):
    """So sure of class 0 that the squares of its gradients underflow."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total * 0 + 60, total * 1e-3], 1)


@pytest.mark.parametrize("norm", [2, 2.0])
def test_an_l2_step_has_its_length_however_small_the_gradient(norm):
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    x_adv = pgd(Flat(), x, y, norm=norm, eps=1.5, eps_step=0.01, max_iter=1).x_adv
    torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), torch.full((2,), 0.01), rtol=1e-4, atol=0)
