import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.alignment import input_gradients
from pipelines.alignment import MEASURES, alignment_table

CLASSES, SHAPE = 100, (3, 16, 16)


def linear(seed: int) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    weight = torch.randn(CLASSES, 768, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(net[1].bias)
    net[1].weight.data = 0.05 * weight
    return net


class SilentOn(nn.Module):
    """A network with no gradient on images whose first pixel is 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (x[:, 0, 0, 0, None] > 0)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(300, *SHAPE, generator=generator), torch.randint(CLASSES, (300,), generator=generator)


def test_input_gradients_are_those_of_the_cross_entropy_in_eval_mode(images):
    x, y = images
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), linear(0)[1])
    net[5] = nn.Linear(4 * 14 * 14, CLASSES)
    found = input_gradients(net.train(), x, y)
    assert net.training
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(net.eval()(leaf), y, reduction="sum"), leaf)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_input_gradients_have_the_right_direction_where_the_network_is_certain(images):
    x, y = images[0][:8], images[1][:8]
    net = linear(0)
    net[1].bias.data = 25.0 * F.one_hot(torch.tensor(3), CLASSES).float()
    y = torch.full_like(y, 3)
    assert (torch.softmax(net(x), 1)[:, 3] == 1).all()
    leaf = x.double().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(net.double()(leaf), y, reduction="sum"), leaf)[0]
    found = input_gradients(net.float(), x, y)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_input_gradients_refuse_images_out_of_range(images):
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        input_gradients(linear(0), 2 * images[0], images[1])


def test_a_network_is_aligned_with_itself(images):
    net = linear(0)
    measured = alignment_table({"FP": net, "8": net}, *images).iloc[0]
    assert (measured["pair"], measured["kind"], measured["n"]) == ("FP-8", "measured", 300)
    for name in MEASURES:
        assert measured[name] == pytest.approx(1, abs=1e-4)
        assert measured[f"{name}_low"] == pytest.approx(1, abs=1e-4)
        assert measured[f"{name}_high"] == pytest.approx(1, abs=1e-4)


def test_independent_networks_are_aligned_as_noise_is(images):
    table = alignment_table({"a": linear(0), "b": linear(1)}, *images).set_index("kind")
    for name in MEASURES:
        assert table.loc["measured", name] == pytest.approx(table.loc["noise", name], abs=0.02)
        assert table.loc["measured", f"{name}_excess"] == pytest.approx(0, abs=0.02)
    assert table.loc["noise", "edge_iou"] == pytest.approx(0.085, abs=0.01)
    assert table.loc["noise", "cosine_low"] < 0 < table.loc["noise", "cosine_high"]


def test_every_pair_has_its_row_and_two_nulls(images):
    x, y = images[0][:20], images[1][:20]
    table = alignment_table({bits: linear(seed) for seed, bits in enumerate(("FP", "4", "2"))}, x, y)
    pairs = ["FP-4", "FP-2", "4-2"]
    assert table["pair"].tolist() == [pair for pair in pairs for _ in range(3)]
    assert table["kind"].tolist() == ["measured", "shuffled", "noise"] * 3
    intervals = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    excess = [f"{name}_excess{end}" for name in MEASURES for end in ("", "_low", "_high")]
    assert set(table.columns) == {"pair", "kind", "n", *intervals, *excess}
    assert table[intervals].notna().all().all()
    measured = table["kind"] == "measured"
    assert table.loc[measured, excess].notna().all().all()
    assert table.loc[~measured, excess].isna().all().all()


def test_excess_is_measured_minus_shuffled(images):
    x, y = images[0][:20], images[1][:20]
    measured, shuffled, _ = alignment_table({"a": linear(0), "b": linear(0)}, x, y).to_dict("records")
    for name in MEASURES:
        assert measured[f"{name}_excess"] == pytest.approx(measured[name] - shuffled[name])
        assert shuffled[name] < 0.99
        assert measured[f"{name}_excess_low"] < measured[f"{name}_excess"] < measured[f"{name}_excess_high"]


def test_the_seed_decides_the_nulls_and_nothing_else(images):
    x, y = images[0][:20], images[1][:20]
    nets = {"a": linear(0), "b": linear(1)}
    first, again, other = (alignment_table(nets, x, y, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert first.loc[0, "edge_iou"] == other.loc[0, "edge_iou"]
    assert first.loc[1, "edge_iou"] != other.loc[1, "edge_iou"]
    assert first.loc[2, "edge_iou"] != other.loc[2, "edge_iou"]


def test_images_without_a_gradient_are_left_out(images):
    x, y = images[0][:20].clone(), images[1][:20]
    x[:5, 0, 0, 0] = 0
    table = alignment_table({"a": linear(0), "b": SilentOn(linear(1))}, x, y)
    assert table["n"].tolist() == [15, 15, 15]
    assert table["cosine"].notna().all()


@pytest.mark.parametrize("heard", [0, 1])
def test_too_few_gradients_give_no_figures(images, heard: int):
    x, y = images[0][:20].clone(), images[1][:20]
    x[heard:, 0, 0, 0] = 0
    table = alignment_table({"a": linear(0), "b": SilentOn(linear(1))}, x, y)
    assert table["n"].tolist() == [0, 0, 0]
    assert table[list(MEASURES)].isna().all().all()


def test_one_network_or_one_image_is_refused(images):
    with pytest.raises(ValueError, match="1 networks and 300 images"):
        alignment_table({"a": linear(0)}, *images)
    with pytest.raises(ValueError, match="2 networks and 1 images"):
        alignment_table({"a": linear(0), "b": linear(1)}, images[0][:1], images[1][:1])
