import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn import similarity
from qnn.similarity import (
    centred,
    cosine,
    edge_iou,
    feature_map,
    gradient_map,
    gradient_similarity,
    hard_edges,
    hog,
    sobel,
    soft_dice,
    soft_edges,
    structural_similarity_loss,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean(values: Tensor) -> float:
    return float(values.mean())


def step(size: int = 16) -> Tensor:
    """0 in the left half and 1 in the right one."""
    image = torch.zeros(1, 1, size, size)
    image[..., size // 2 :] = 1
    return image


def ramp(degrees: float, size: int = 12) -> Tensor:
    """Grows in the direction at `degrees` from that of the columns to that of the rows."""
    place = torch.arange(size, dtype=torch.float64)
    radians = math.radians(degrees)
    return (math.cos(radians) * place[None, :] + math.sin(radians) * place[:, None])[None, None]


def inner_bins(maps: Tensor) -> Tensor:
    """The histogram of the middle one of three by three cells."""
    return hog(maps)[0, :, 1, 1]


def expected_bins(degrees: float) -> Tensor:
    position = (degrees / 20 - 0.5) % 9
    below, share = int(position) % 9, position % 1
    bins = torch.zeros(9, dtype=torch.float64)
    bins[below] += 1 - share
    bins[(below + 1) % 9] += share
    return bins / bins.norm()


def test_channels_are_reduced_to_their_mean_and_their_mean_magnitude():
    x = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    assert feature_map(x).flatten().tolist() == [1.0]
    assert gradient_map(x).flatten().tolist() == [2.0]
    assert feature_map(x.bfloat16()).dtype == gradient_map(x.half()).dtype == torch.float32


def test_sobel_of_a_step_is_four_on_both_sides_of_it_and_nothing_elsewhere():
    magnitude = sobel(3 * step())[0, 0]
    torch.testing.assert_close(magnitude[:, 7:9], torch.full((16, 2), 4.0))
    assert magnitude[:, :7].max() == magnitude[:, 9:].max() <= 1.01e-4


@pytest.mark.parametrize("turns", [0, 1])
def test_the_edge_of_a_step_is_found(turns: int):
    edges = hard_edges(torch.rot90(step(), turns, (2, 3)))
    expected = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    expected[..., 7:9] = True
    assert torch.equal(edges, torch.rot90(expected, turns, (2, 3)))


def test_edges_are_the_top_fifteen_percent_softly_and_hard():
    x = noise(20, 1, 32, 32)
    hard, soft = hard_edges(x), soft_edges(x)
    assert (hard.flatten(1).sum(1) == 153).all()
    assert torch.equal(soft > 0.5, hard)
    assert soft.min() > 0
    assert soft.max() <= 1


def test_the_threshold_is_a_constant_to_autograd():
    x = noise(1, 1, 8, 8).requires_grad_()
    magnitude = similarity._unit(sobel(x))
    fixed = torch.sigmoid(100 * (magnitude - magnitude.detach().flatten().sort().values[-10]))
    torch.testing.assert_close(soft_edges(x), fixed)
    expected = torch.autograd.grad(fixed.square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(soft_edges(x).square().sum(), x)[0], expected)


def test_overlaps_of_known_edges():
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(edge_iou(a > 0, b > 0), torch.tensor([1 / 3, 0, 0]))
    torch.testing.assert_close(soft_dice(a, b)[:2], torch.tensor([0.5, 0]))


@pytest.mark.parametrize("degrees", [0, 10, 25, 70, 90, 115, 170, 179, 200])
def test_a_ramp_votes_for_the_bins_next_to_its_direction(degrees: float):
    torch.testing.assert_close(inner_bins(ramp(degrees)), expected_bins(degrees), rtol=0, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 10, 33, 80, 125])
def test_a_quarter_turn_of_the_image_turns_its_bins_by_ninety_degrees(degrees: float):
    turned = torch.rot90(ramp(degrees), 1, (2, 3))
    torch.testing.assert_close(inner_bins(turned), expected_bins(degrees + 90), rtol=0, atol=1e-6)


def test_half_a_turn_moves_the_cells_and_a_reflection_the_bins_too():
    x = noise(5, 1, 12, 20)
    torch.testing.assert_close(hog(x.flip(2, 3)), hog(x).flip(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(hog(x.flip(3)), hog(x).flip(1, 3), rtol=0, atol=1e-5)


def test_histograms_have_norm_one_or_are_zero_where_the_image_is_flat():
    histograms = hog(step(16))
    assert histograms.shape == (1, 9, 4, 4)
    norms = histograms.norm(dim=1)[0]
    torch.testing.assert_close(norms[:, 1:3], torch.ones(4, 2))
    assert norms[:, [0, 3]].max() == 0


def test_rows_and_columns_that_fill_no_cell_are_left_out():
    x = noise(2, 1, 13, 18)
    assert torch.equal(hog(x)[..., :-1, :-1], hog(x)[:, :, :2, :3])
    assert hog(x).shape == (2, 9, 3, 4)


def test_centred_histograms_have_no_mean():
    histograms = centred(hog(noise(5, 1, 16, 16)))
    assert histograms.mean(1).abs().max() < 1e-6


def test_identical_maps_give_one():
    x = noise(10, 3, 32, 32)
    for name, values in gradient_similarity(x, x).items():
        torch.testing.assert_close(values, torch.ones(10), rtol=0, atol=1e-5, msg=name)
    maps = gradient_map(x)
    torch.testing.assert_close(structural_similarity_loss(maps, maps), torch.full((10,), 1.5))
    torch.testing.assert_close(structural_similarity_loss(maps, maps, alpha=2, beta=0), torch.full((10,), 2.0))


@pytest.mark.parametrize(("cell", "floor"), [(4, 0.73), (8, 0.91)])
def test_white_noise_gives_the_known_floors(cell: int, floor: float):
    a, b = noise(500, 1, 32, 32), noise(500, 1, 32, 32, seed=1)
    histograms = hog(a, cell), hog(b, cell)
    assert mean(cosine(a, b)) == pytest.approx(0, abs=0.005)
    assert mean(edge_iou(hard_edges(a), hard_edges(b))) == pytest.approx(0.085, abs=0.003)
    assert mean(cosine(*histograms)) == pytest.approx(floor, abs=0.006)
    assert mean(cosine(*map(centred, histograms))) == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize(("cell", "floor"), [(4, 0.73), (8, 0.91)])
def test_gradients_of_white_noise_have_the_same_floors(cell: int, floor: float):
    found = gradient_similarity(noise(500, 3, 32, 32), noise(500, 3, 32, 32, seed=1), cell)
    expected = {"cosine": 0, "edge_iou": 0.085, "hog_cosine": floor, "hog_cosine_centred": 0}
    for name, values in found.items():
        assert values.shape == (500,)
        assert mean(values) == pytest.approx(expected[name], abs=0.015), name


def test_magnitudes_of_one_channel_favour_some_directions_so_that_their_centred_floor_is_above_zero():
    found = gradient_similarity(noise(500, 1, 32, 32), noise(500, 1, 32, 32, seed=1), cell=8)
    assert mean(found["hog_cosine_centred"]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 3.0, 1e20])
def test_nothing_depends_on_the_scale_of_a_map(scale: float):
    a, b = noise(4, 3, 16, 16), noise(4, 3, 16, 16, seed=1)
    scaled = gradient_similarity(scale * a, b)
    for name, values in gradient_similarity(a, b).items():
        torch.testing.assert_close(scaled[name], values, rtol=0, atol=2e-5, msg=name)
    a, b = feature_map(a), feature_map(b)
    expected = structural_similarity_loss(a, b)
    torch.testing.assert_close(structural_similarity_loss(a, scale * b), expected, rtol=0, atol=2e-5)


def test_the_sign_of_a_gradient_matters_to_its_cosine_only():
    x = noise(4, 3, 16, 16)
    found = gradient_similarity(x, -x)
    torch.testing.assert_close(found.pop("cosine"), -torch.ones(4))
    for values in found.values():
        torch.testing.assert_close(values, torch.ones(4), rtol=0, atol=1e-5)


def test_each_image_is_compared_with_its_own_partner():
    a, b = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
    together = gradient_similarity(a, b)
    for i in range(3):
        alone = gradient_similarity(a[i : i + 1], b[i : i + 1])
        for name, values in together.items():
            torch.testing.assert_close(values[i : i + 1], alone[name])


def test_a_gradient_of_zero_is_like_no_other():
    a, b = noise(3, 3, 16, 16), noise(3, 3, 16, 16, seed=1)
    a[0] = 0
    b[2] = 1e-35
    for values in gradient_similarity(a, b).values():
        assert values.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "function",
    [
        sobel,
        lambda x: hog(x, cell=2),
        lambda x: centred(hog(x, cell=3)),
        lambda x: cosine(x, noise(2, 1, 5, 4, seed=7, dtype=torch.float64)),
        lambda x: structural_similarity_loss(x, noise(2, 1, 5, 4, seed=7, dtype=torch.float64), cell=2),
    ],
)
def test_gradients_of_both_orders(function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(similarity, "_threshold", lambda magnitude: 0.8)
    monkeypatch.setattr(similarity, "SHARPNESS", 10.0)
    x = noise(2, 1, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.3), 1e-33 * noise(1, 1, 8, 8), 1 + 1e-6 * noise(1, 1, 8, 8)],
    ids=["zero", "flat", "tiny", "almost flat"],
)
@pytest.mark.parametrize("other", [noise(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)], ids=["noise", "zero"])
def test_maps_without_structure_have_finite_gradients_of_both_orders(x: Tensor, other: Tensor):
    x = x.clone().requires_grad_()
    value = structural_similarity_loss(x, other).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert value.isfinite()
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_maps_with_a_flat_part_have_finite_gradients():
    x = step().requires_grad_()
    structural_similarity_loss(x, noise(1, 1, 16, 16)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_the_gradients_of_two_networks_are_driven_apart_through_their_weights():
    torch.manual_seed(0)
    x, y = torch.rand(8, 3, 12, 12), torch.arange(8) % 4
    nets = [nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(600, 4)) for _ in range(2)]
    optimizer = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=0.01)

    def penalty() -> Tensor:
        leaf = x.clone().requires_grad_()
        losses = [F.cross_entropy(net(leaf), y, reduction="sum") for net in nets]
        gradients = [torch.autograd.grad(loss, leaf, create_graph=True)[0] for loss in losses]
        return structural_similarity_loss(gradient_map(gradients[0]), gradient_map(gradients[1])).mean()

    before = penalty().item()
    for _ in range(20):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty().item() < before - 0.1


def test_arithmetic_is_float32_under_autocast():
    a, b = noise(4, 1, 16, 16), noise(4, 1, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        cast, low = structural_similarity_loss(a, b), structural_similarity_loss(a.bfloat16(), b.bfloat16())
    assert torch.equal(cast, structural_similarity_loss(a, b))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, cast, rtol=0, atol=0.1)


def test_inputs_that_cannot_be_compared_are_refused():
    a, rgb = noise(2, 1, 8, 8), noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"different shapes .* \(2, 1, 8, 8\) and \(2, 3, 8, 8\)"):
        structural_similarity_loss(a, rgb)
    with pytest.raises(ValueError, match="different shapes"):
        gradient_similarity(rgb, rgb[:1])
    with pytest.raises(ValueError, match=r"must be \(n, 1, height, width\), not \(2, 3, 8, 8\)"):
        structural_similarity_loss(rgb, rgb)
    for cell in (0, 9):
        with pytest.raises(ValueError, match=f"cell={cell} does not fit into maps of 8 × 8"):
            hog(a, cell)
