from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attacks import choose_targets, select_correct
from attacks.selection import BLOCK, shared_random_targets

COUNT = 1300
LABELS = torch.arange(COUNT) % 10


def pixels(positions: Tensor) -> Tensor:
    """Each image is its own position."""
    return positions.float().view(-1, 1, 1, 1)


def network(right: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Logits of a network that gets the images right at the positions for which `right` is true."""

    def predict(images: Tensor) -> Tensor:
        positions = images.view(-1).long()
        return F.one_hot((LABELS[positions] + (~right(positions)).long()) % 10, 10).float()

    return predict


def everything(positions: Tensor) -> Tensor:
    return positions >= 0


def even(positions: Tensor) -> Tensor:
    return positions % 2 == 0


def select(right: Callable[[Tensor], Tensor], n: int, seed: int = 0):
    return select_correct(network(right), pixels, LABELS, n=n, seed=seed)


@pytest.mark.parametrize("n", [1, 7, BLOCK // 2, BLOCK, BLOCK + 1])
def test_chosen_images_are_classified_correctly(n: int):
    chosen = select(even, n)
    assert len(chosen) == n
    assert even(chosen.indices).all()
    assert len(chosen.indices.unique()) == n
    assert torch.equal(chosen.labels, LABELS[chosen.indices])


def test_fewer_select_a_prefix_of_more():
    assert torch.equal(select(even, 600).indices[:40], select(even, 40).indices)


def test_two_networks_are_attacked_on_the_same_images_as_far_as_both_are_right():
    whole, half = select(everything, COUNT).indices, select(even, COUNT).indices
    assert torch.equal(half, whole[even(whole)])


def test_images_of_the_target_class_are_not_attacked():
    chosen = select_correct(network(everything), pixels, LABELS, n=COUNT, seed=0, besides=3)
    assert len(chosen) == COUNT * 9 // 10
    assert not (chosen.labels == 3).any()


def test_selection_depends_on_the_seed():
    assert torch.equal(select(even, 50).indices, select(even, 50).indices)
    assert not torch.equal(select(even, 50).indices, select(even, 50, seed=1).indices)


def test_selection_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    select(even, 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_images_are_predicted_than_needed():
    asked = []

    def counted(images: Tensor) -> Tensor:
        asked.append(len(images))
        return network(everything)(images)

    select_correct(counted, pixels, LABELS, n=10, seed=0)
    assert asked == [BLOCK]


def test_all_correct_images_are_taken_where_there_are_fewer():
    chosen = select(lambda positions: positions < 12, 100)
    assert sorted(chosen.indices.tolist()) == list(range(12))


def test_a_network_that_is_always_wrong_cannot_be_attacked():
    with pytest.raises(ValueError, match="classifies no test image correctly"):
        select(lambda positions: positions < 0, 5)


LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [-1.0, 0.0, 4.0], [1.0, 0.0, -2.0]])
TRUE = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("target", "expected"),
    [(2, [2, 2, 2, 2]), (0, [0, 0, 0, 0]), ("next", [1, 2, 0, 1]), ("least_likely", [1, 0, 0, 2])],
)
def test_target_forms(target: int | str, expected: list[int]):
    targets = choose_targets(target, LOGITS, TRUE, seed=0)
    assert targets is not None
    assert targets.tolist() == expected
    assert targets.dtype == torch.int64


def test_no_target_means_untargeted():
    assert choose_targets(None, LOGITS, TRUE, seed=0) is None


def test_random_targets_are_seeded_and_spread_over_the_wrong_classes():
    labels = torch.zeros(900, dtype=torch.int64) + 4
    logits = torch.zeros(900, 10)
    targets = choose_targets("random", logits, labels, seed=3)
    assert torch.equal(targets, choose_targets("random", logits, labels, seed=3))
    assert not torch.equal(targets, choose_targets("random", logits, labels, seed=4))
    counts = targets.bincount(minlength=10)
    assert counts[4] == 0
    assert counts[counts > 0].min() > 60
    assert (counts > 0).sum() == 9


@pytest.mark.parametrize("target", [3, -1, 1.0, "nearest", "", "1"])
def test_unknown_target_is_refused(target: object):
    with pytest.raises(ValueError, match=rf"attack\.target={target} is unknown: use a class from 0 to 2"):
        choose_targets(target, LOGITS, TRUE, seed=0)  # type: ignore[arg-type]


def test_shared_targets_are_one_wrong_class_for_all_images_of_a_class():
    predicted = torch.arange(10).repeat(3)
    targets = shared_random_targets(predicted, 10, seed=1)
    assert (targets != predicted).all()
    assert ((targets >= 0) & (targets < 10)).all()
    assert torch.equal(targets.view(3, 10), targets[:10].expand(3, 10))
    assert torch.equal(targets, shared_random_targets(predicted, 10, seed=1))
    assert not torch.equal(targets, shared_random_targets(predicted, 10, seed=2))


def test_shared_targets_leave_the_global_generator_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    shared_random_targets(torch.tensor([2]), 4, seed=2**32 + 1)
    assert np.random.get_state()[1].tolist() == before
