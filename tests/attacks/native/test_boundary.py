import pytest
import torch
from torch import Tensor, nn

from attacks import boundary


def l2(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


def unchanged(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x == x_adv).flatten(1).all(1)


@pytest.fixture(params=["FP", "1"])
def digits(request: pytest.FixtureRequest, trained):
    return trained(request.param)


@pytest.fixture
def batch(digits):
    return digits.first(16)


@pytest.fixture
def other_digits(digits, batch) -> Tensor:
    """For each image of the batch one of the class after its own."""
    return torch.stack([digits.x[digits.y == target][0] for target in batch.wrong_class])


@pytest.mark.parametrize("variant", ["closest", "first"])
@pytest.mark.parametrize("targeted", [False, True])
def test_images_come_back_adversarial_or_clean(batch, variant: str, targeted: bool):
    targets = batch.wrong_class if targeted else None
    result = boundary(batch.model, batch.x, batch.y, max_iter=4, variant=variant, targets=targets, init_size=20)
    predicted = batch.predict(result.x_adv)
    broken = predicted != batch.y if targets is None else predicted == targets
    assert torch.equal(broken, ~unchanged(batch.x, result.x_adv))
    assert broken.any()
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    assert result.backwards == 0


def test_first_keeps_the_class_of_the_start_and_closest_does_not(batch):
    kept = {}
    for variant in ("first", "closest"):
        result = boundary(batch.model, batch.x, batch.y, max_iter=15, variant=variant, snapshots=[0], delta=0.1)
        started = ~unchanged(batch.x, result.snapshots[0])
        assert started.sum() >= 8
        kept[variant] = batch.predict(result.x_adv)[started] == batch.predict(result.snapshots[0])[started]
    assert kept["first"].all()
    assert not kept["closest"].all()


def test_closest_comes_closer_than_first(batch, other_digits):
    closest, first = (
        l2(batch.x, boundary(batch.model, batch.x, batch.y, max_iter=15, variant=variant, start=other_digits).x_adv)
        for variant in ("closest", "first")
    )
    assert closest.mean() < first.mean()


def test_snapshots_lead_from_the_start_to_the_result(batch, other_digits):
    result = boundary(batch.model, batch.x, batch.y, max_iter=12, start=other_digits, snapshots=[12, 0, 6, 3, 6])
    assert list(result.snapshots) == [0, 3, 6, 12]
    assert torch.equal(result.snapshots[0], other_digits)
    assert torch.equal(result.snapshots[12], result.x_adv)
    means = [float(l2(batch.x, images).mean()) for images in result.snapshots.values()]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]


def test_a_snapshot_is_the_result_of_a_shorter_walk(batch):
    long = boundary(batch.model, batch.x, batch.y, max_iter=6, snapshots=[3], seed=4)
    short = boundary(batch.model, batch.x, batch.y, max_iter=3, seed=4)
    assert torch.equal(long.snapshots[3], short.x_adv)
    assert not torch.equal(long.x_adv, short.x_adv)


@pytest.mark.parametrize("at", [-1, 4])
def test_snapshots_outside_the_walk_are_refused(linear, at: int):
    with pytest.raises(ValueError, match="snapshots"):
        boundary(linear.model, linear.x, linear.y, max_iter=3, snapshots=[0, at])


@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_without_a_start_is_returned_clean_after_all_tries(constant, targeted: bool):
    targets = constant.wrong_class if targeted else None
    result = boundary(constant.model, constant.x, constant.y, max_iter=5, init_size=7, targets=targets, snapshots=[0])
    assert torch.equal(result.x_adv, constant.x)
    assert torch.equal(result.snapshots[0], constant.x)
    assert result.extra == {"start_tries": 7}
    assert result.forwards == 5 * (1 + 7)


def test_noise_is_drawn_until_it_is_adversarial(linear_pair):
    """Noise is of either class with about the same chance, so two tries are needed on average."""
    result = boundary(linear_pair.model, linear_pair.x, linear_pair.y, max_iter=1)
    assert (linear_pair.predict(result.x_adv) != linear_pair.y).all()
    assert 1 < result.extra["start_tries"] < 4


def test_a_start_that_is_not_adversarial_is_replaced_by_noise(linear_pair):
    start = linear_pair.x.clone()
    start[::2] = 1 - start[::2]
    result = boundary(linear_pair.model, linear_pair.x, linear_pair.y, max_iter=3, start=start, snapshots=[0])
    assert torch.equal(result.snapshots[0][::2], start[::2])
    assert (linear_pair.predict(result.snapshots[0]) != linear_pair.y).all()
    assert result.extra["start_tries"] > 0


def test_images_already_of_the_target_class_are_left_alone(linear):
    result = boundary(linear.model, linear.x, linear.y, max_iter=3, targets=linear.y)
    assert torch.equal(result.x_adv, linear.x)
    assert result.extra == {"start_tries": 0}


def test_a_targeted_walk_stays_in_the_target_class(batch, other_digits):
    targets = batch.wrong_class
    result = boundary(batch.model, batch.x, batch.y, max_iter=6, start=other_digits, targets=targets, snapshots=[2, 4])
    for images in (*result.snapshots.values(), result.x_adv):
        assert torch.equal(batch.predict(images), targets)


def test_a_walk_ends_with_its_step_below_min_epsilon(linear):
    walk = {"max_iter": 8, "snapshots": [1, 8], "epsilon": 0.01}
    short, whole = (
        boundary(linear.model, linear.x, linear.y, min_epsilon=min_epsilon, **walk) for min_epsilon in (0.5, 0.0)
    )
    assert torch.equal(short.x_adv, whole.snapshots[1])
    assert torch.equal(short.snapshots[8], whole.snapshots[1])
    assert short.forwards < whole.forwards
    assert (l2(linear.x, whole.x_adv) < l2(linear.x, short.x_adv)).all()


def test_the_seed_sets_the_walk(batch):
    one, same, other = (
        boundary(batch.model, batch.x[:6], batch.y[:6], max_iter=3, seed=seed).x_adv for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_walks_held_at_a_time_do_not_change_the_result(linear, monkeypatch: pytest.MonkeyPatch):
    whole = boundary(linear.model, linear.x, linear.y, max_iter=5, snapshots=[2])
    monkeypatch.setitem(boundary.__globals__, "_PROPOSAL_VALUES", 20 * 16 * 5)
    parts = boundary(linear.model, linear.x, linear.y, max_iter=5, snapshots=[2])
    assert torch.equal(parts.x_adv, whole.x_adv)
    assert torch.equal(parts.snapshots[2], whole.snapshots[2])
    assert (parts.forwards, parts.extra) == (whole.forwards, whole.extra)


@pytest.fixture
def calls(linear_pair) -> list[Tensor]:
    """The batches a linear network of two classes is given, padded by repeating their last image."""
    batches: list[Tensor] = []
    linear_pair.model.register_forward_pre_hook(lambda _, args: batches.append(args[0].clone()))
    return batches


@pytest.mark.parametrize("variant", ["closest", "first"])
def test_the_candidate_kept_is_the_closest_or_the_first(linear_pair, calls: list[Tensor], variant: str):
    one = linear_pair.first(1)
    x_adv = boundary(one.model, one.x, one.y, max_iter=1, start=1 - one.x, variant=variant).x_adv
    candidates = calls[-1]
    candidates = candidates[one.predict(candidates) != one.y]
    distances = l2(one.x, candidates)
    assert distances.min() < distances[0]
    assert torch.equal(x_adv[0], candidates[distances.argmin() if variant == "closest" else 0])


def test_the_step_towards_the_image_shrinks_below_a_fifth_of_successes_and_grows_above_half(linear_pair, calls):
    one = linear_pair.first(1)
    boundary(one.model, one.x, one.y, max_iter=60, start=1 - one.x, delta=0.5, epsilon=0.1, sample_size=40)
    batches = iter(calls[2:])  # after those of the image and the start
    expected, shares = 0.1, []
    while (proposals := next(batches, None)) is not None:
        survivors = proposals[:40][linear_pair.predict(proposals[:40]) != one.y]
        share = 0.0
        while len(survivors) and not share:
            candidates = next(batches)[: len(survivors)]
            steps = l2(one.x, candidates) / l2(one.x, survivors)
            torch.testing.assert_close(steps, torch.full_like(steps, abs(1 - expected)), rtol=0, atol=5e-5)
            share = float((linear_pair.predict(candidates) != one.y).float().mean())
            shares.append(share)
            expected *= 0.667 if share < 0.2 else 1 / 0.667 if share > 0.5 else 1
    assert any(0.1 < share < 0.2 for share in shares)
    assert any(0.2 <= share <= 0.5 for share in shares)
    assert any(0.5 < share < 0.8 for share in shares)


class Peak(nn.Module):
    """Class 1 where the first value is above 0.9, class 0 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return torch.cat([torch.full_like(first, 0.9), first], 1)


def test_images_without_a_start_do_not_hold_up_the_others():
    x = torch.full((40, 1, 2, 2), 0.5)
    result = boundary(Peak(), x, torch.zeros(40, dtype=torch.int64), max_iter=10, init_size=5, epsilon=0.1)
    clean = unchanged(x, result.x_adv)
    assert 0 < clean.sum() < 40
    assert torch.equal(Peak()(result.x_adv).argmax(1) == 1, ~clean)
