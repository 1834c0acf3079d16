import math

import pytest
import torch
from torch import Tensor, nn

from attacks.sensitivity import compare_maps, sensitivity_map


class Spot(nn.Module):
    """Class 1 where the sum of the pixels from (row, column) on, `side` by `side`, exceeds `limit`."""

    def __init__(self, row: int, column: int, side: int, limit: float) -> None:
        super().__init__()
        self.window = (..., slice(row, row + side), slice(column, column + side))
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        total = x[self.window].flatten(1).sum(1)
        return torch.stack([torch.zeros_like(total), total - self.limit], 1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(40, 1, 10, 12, generator=torch.Generator().manual_seed(0)) * 0.2


LABELS = torch.zeros(40, dtype=torch.int64)


def test_the_place_that_decides_is_the_only_weak_one(images):
    found = sensitivity_map(Spot(4, 6, side=4, limit=15.9), images, LABELS, torch.ones(1, 4, 4))
    expected = torch.zeros(4, 5)
    expected[2, 3] = 1
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("stride", "shape"), [(1, (7, 9)), (2, (4, 5)), (3, (3, 3)), (100, (1, 1))])
def test_rates_are_those_worked_out_place_by_place(images, stride: int, shape: tuple[int, int]):
    model = Spot(3, 5, side=5, limit=7.0)
    patch = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = sensitivity_map(model, images, LABELS, patch, stride=stride)
    assert found.shape == shape
    for i, j in torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1])).tolist():
        covered = images.clone()
        covered[:, :, i * stride : i * stride + 4, j * stride : j * stride + 4] = patch
        wrong = covered[model.window].flatten(1).sum(1) > model.limit
        assert found[i, j] == wrong.float().mean()
    assert stride > 2 or found.max() > 0
    assert found.min() < 1


def test_a_patch_lets_the_image_through_as_far_as_its_opacity_says(images):
    model = Spot(4, 6, side=4, limit=8.0)
    images[:, :, 4:8, 6:10] = 0.2
    # 16 pixels of 0.2 and 1 come to 3.2 + 12.8 · opacity
    rates = [sensitivity_map(model, images, LABELS, torch.ones(1, 4, 4), opacity=o).max() for o in (0.37, 0.38, 1.0)]
    assert rates == [0, 1, 1]


def test_the_nearer_to_a_linear_network_s_largest_weights_the_weaker():
    row, column = torch.arange(9.0)[:, None], torch.arange(9.0)[None]
    weight = torch.exp(-((row - 5) ** 2 + (column - 3) ** 2) / 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 81, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-weight, weight]).repeat(1, 3, 1).reshape(2, -1))
        model[1].bias.zero_()
        x = torch.rand(200, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        logits = model(x)[:, 1]
        model[1].bias.copy_(torch.tensor([1.0, -1.0]) * (logits.max() + 1))
    found = sensitivity_map(model, x, torch.zeros(200, dtype=torch.int64), torch.ones(3, 3, 3), stride=1)
    assert divmod(int(found.argmax()), 7) == (4, 2)
    total = nn.functional.conv2d(weight[None, None], torch.ones(1, 1, 3, 3))[0, 0]
    assert compare_maps(found, total)["spearman"] > 0.85


def test_images_model_and_mode_stay_as_they_are(images):
    model, kept = nn.Sequential(Spot(0, 0, 2, 1.0), nn.Dropout(0.5)), images.clone()
    model.train()
    sensitivity_map(model, images, LABELS, torch.ones(1, 3, 3))
    assert torch.equal(images, kept)
    assert model.training
    assert model[1].training


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3), (1, 3, 2), (1, 11, 11), (1, 0, 0), ()])
def test_a_patch_that_does_not_fit_is_refused(images, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"patch must be \(1, k, k\) with k from 1 to 10, not"):
        sensitivity_map(Spot(0, 0, 2, 1.0), images, LABELS, torch.ones(shape))


def test_other_bad_inputs_are_refused(images):
    model, patch = Spot(0, 0, 2, 1.0), torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match=r"patch must lie in \[0, 1\]"):
        sensitivity_map(model, images, LABELS, 2 * patch)
    with pytest.raises(ValueError, match="stride=0 is out of range"):
        sensitivity_map(model, images, LABELS, patch, stride=0)
    with pytest.raises(ValueError, match="opacity=0 is out of range"):
        sensitivity_map(model, images, LABELS, patch, opacity=0)
    with pytest.raises(ValueError, match="at least one image"):
        sensitivity_map(model, images[:0], LABELS[:0], patch)
    with pytest.raises(ValueError, match=r"at least one image .* not \(40, 120\)"):
        sensitivity_map(model, images.flatten(1), LABELS, patch)
    with pytest.raises(ValueError, match="x must lie in"):
        sensitivity_map(model, images + 1, LABELS, patch)


def test_a_map_agrees_with_itself_and_with_what_grows_with_it():
    a = torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
    assert compare_maps(a, a) == {"spearman": pytest.approx(1), "top_overlap": pytest.approx(1)}
    assert compare_maps(a, a**3) == {"spearman": pytest.approx(1), "top_overlap": pytest.approx(1)}
    assert compare_maps(a, -a) == {"spearman": pytest.approx(-1), "top_overlap": 0}


def test_unrelated_maps_agree_as_chance_has_it():
    generator = torch.Generator().manual_seed(0)
    found = [compare_maps(*torch.rand(2, 14, 14, generator=generator)) for _ in range(300)]
    assert sum(row["spearman"] for row in found) / 300 == pytest.approx(0, abs=0.02)
    assert sum(row["top_overlap"] for row in found) / 300 == pytest.approx(0.1, abs=0.015)


def test_a_known_overlap_of_the_top_tenth():
    a, b = torch.zeros(30), torch.zeros(30)
    a[[0, 1, 2]] = b[[0, 1, 9]] = torch.tensor([0.9, 0.8, 0.7])
    assert compare_maps(a, b)["top_overlap"] == pytest.approx(2 / 3)


def test_a_map_of_one_value_has_no_top_to_agree_on():
    flat, peaked = torch.full((30,), 0.5), torch.zeros(30)
    peaked[:3] = torch.tensor([0.9, 0.8, 0.7])
    for pair in ((flat, peaked), (peaked, flat), (flat, flat), (flat * 0, flat * 0)):
        assert all(math.isnan(value) for value in compare_maps(*pair).values())


def test_unrelated_maps_with_equal_rates_agree_no_more_than_others():
    generator = torch.Generator().manual_seed(0)
    one, two = torch.zeros(40), torch.zeros(40)
    one[:2], two[:10] = 1, 1
    for a, b in ((one, two), (two, one), (two, two), (one, one)):
        found = [compare_maps(a, b[torch.randperm(40, generator=generator)])["top_overlap"] for _ in range(4000)]
        assert sum(found) / 4000 == pytest.approx(0.1, abs=0.005)


def test_places_with_equal_rates_are_in_the_top_as_often_as_if_drawn():
    a, b = torch.zeros(30), torch.zeros(30)
    a[0], b[0] = 1, 1  # 2 of the other 29 are drawn in both maps
    assert compare_maps(a, b)["top_overlap"] == pytest.approx((1 + 29 * (2 / 29) ** 2) / 3)


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"different shapes .* \(2, 3\) and \(3, 2\)"):
        compare_maps(torch.zeros(2, 3), torch.zeros(3, 2))
