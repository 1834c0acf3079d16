import collections
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qnn.defences import Defence, Schedule, qadt_r
from qnn.models import ResNet
from qnn.recipes import CrossEntropy, Recipe, Step
from qnn.regularizers import (
    FeatureDisalignment,
    GradientDisalignment,
    GradientInconsistency,
    GradientNoise,
    input_gradients,
)
from qnn.switchable import Switchable, set_width, switchable, widths_of
from qnn.training import Classifier
from qnn.uniform import Uniform

WIDTHS = ("FP", "8", "4", "2")
START = Step(epoch=0, epochs=10, number=0)


def steps(count: int, epoch: int = 0, epochs: int = 10) -> list[Step]:
    return [Step(epoch, epochs, number) for number in range(count)]


def batch(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 32, 32, generator=generator), torch.arange(n) % 10


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    built = switchable(lambda width: ResNet(Uniform(width), n=1), WIDTHS)
    for width in WIDTHS:
        set_width(built, width)
        built(batch(16)[0])
    return built


class Recorder:
    """An adversary that whitens images and notes the widths it saw, one forward pass for each of `looks`."""

    def __init__(self, net: nn.Module, looks: int = 1) -> None:
        self.switch = next(module for module in net.modules() if isinstance(module, Switchable))
        self.looks, self.widths, self.seeds, self.batches = looks, [], [], []

    def __call__(self, model, x, y, *, seed):
        for _ in range(self.looks):
            model(x)
            self.widths.append(self.switch.active)
        self.seeds.append(seed)
        self.batches.append(len(x))
        return SimpleNamespace(x_adv=torch.ones_like(x))


def test_cycling_trains_every_width_equally_often():
    schedule = Schedule(WIDTHS, "cycle")
    assert [schedule.trained(step)[0] for step in steps(8)] == [*WIDTHS, *WIDTHS]


def test_cycling_goes_on_over_epochs_of_fewer_steps_than_widths():
    schedule = Schedule(WIDTHS, "cycle")
    for per_epoch in (1, 2, 3):
        seen = [schedule.trained(step)[0] for epoch in range(4) for step in steps(per_epoch, epoch)]
        assert all(seen.count(width) == per_epoch for width in WIDTHS)


def test_widths_that_a_schedule_never_trains_are_known():
    assert Schedule(WIDTHS, "epoch").never_trained(3) == ("2",)
    assert Schedule(WIDTHS, "epoch", {"8": 0.5}).never_trained(4) == ("8",)
    assert Schedule(WIDTHS, "epoch").never_trained(4) == ()
    assert Schedule(WIDTHS, "cycle").never_trained(1) == ()
    assert Schedule(WIDTHS, "cycle").never_trained(1, steps_per_epoch=3) == ("2",)
    assert Schedule(WIDTHS, "cycle").never_trained(2, steps_per_epoch=3) == ()
    assert Schedule(WIDTHS, "cycle_shuffled").never_trained(1, steps_per_epoch=2) == ("4", "2")
    assert Schedule(WIDTHS, "lowest").never_trained(1) == ()
    assert Schedule(WIDTHS, "lowest", {"2": 0.9}).never_trained(1) == ("2",)
    assert Schedule(WIDTHS, "all").never_trained(1, steps_per_epoch=1) == ()
    before = torch.get_rng_state()
    assert Schedule(WIDTHS, "random").never_trained(1, steps_per_epoch=1) == ()
    assert torch.equal(before, torch.get_rng_state())


def test_shuffled_cycling_has_every_width_once_in_each_round_in_changing_order():
    schedule = Schedule(WIDTHS, "cycle_shuffled")
    seen = [schedule.trained(step)[0] for step in steps(40)]
    rounds = [tuple(seen[i : i + 4]) for i in range(0, 40, 4)]
    assert all(sorted(one) == sorted(WIDTHS) for one in rounds)
    assert len(set(rounds)) > 3
    assert seen == [schedule.trained(step)[0] for step in steps(40)]


def test_random_widths_follow_torchs_generator_and_reach_all():
    schedule = Schedule(WIDTHS, "random")
    torch.manual_seed(3)
    seen = [schedule.trained(step) for step in steps(60)]
    torch.manual_seed(3)
    assert seen == [schedule.trained(step) for step in steps(60)]
    assert {width for (width,) in seen} == set(WIDTHS)


def test_the_other_orders():
    assert Schedule(WIDTHS, "all").trained(START) == WIDTHS
    assert Schedule(WIDTHS, "lowest").trained(START) == ("2",)
    assert [Schedule(WIDTHS, "epoch").trained(Step(e, 10, 5))[0] for e in range(5)] == [*WIDTHS, "FP"]
    assert Schedule().trained(START) == ()


@pytest.mark.parametrize(
    ("widths", "lowest", "highest"),
    [(("FP", "w4aFP"), "w4aFP", "FP"), (("w8a2", "4", "FP"), "w8a2", "FP"), (("w4aFP", "4", "w2a8"), "w2a8", "w4aFP")],
)
def test_widths_are_ordered_by_weights_and_activations(widths, lowest, highest):
    for given in (widths, widths[::-1]):
        assert Schedule(given, "lowest").trained(START) == Schedule(given, "lowest").ever_trained == (lowest,)
        defence = Defence(widths=given, attack_width="full")
        assert defence._draw((lowest,), given) == highest


def test_low_weights_warm_up_as_low_activations_do():
    widths = ("FP", "8", "w2aFP", "w2a8", "w8a2", "w8aFP")
    assert qadt_r(widths=widths, adversary=None, gir="none").schedule.active(START) == ("FP", "8", "w8aFP")


@pytest.mark.parametrize("widths", [(4, 2), ("2", "4"), ("w4a4", "4", 2), ("4", "w4aFP", "2")])
def test_without_a_width_of_8_bits_the_highest_needs_no_warm_up(widths):
    schedule = qadt_r(widths=widths, adversary=None, gir="none", warm_up=0.3).schedule
    assert schedule.active(START) == (("w4aFP",) if "w4aFP" in widths else ("4",))
    assert set(schedule.active(Step(3, 10, 0))) == set(schedule.widths)


def test_widths_enter_at_their_share_of_the_training():
    schedule = Schedule(WIDTHS, "all", {"4": 0.3, "2": 0.45})
    assert schedule.trained(Step(2, 10, 0)) == ("FP", "8")
    assert schedule.trained(Step(3, 10, 0)) == ("FP", "8", "4")
    assert schedule.trained(Step(5, 10, 0)) == WIDTHS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "sideways"}, "order=sideways is unknown"),
        ({"enters": {"3": 0.5}}, "not trained: 3"),
        ({"enters": dict.fromkeys(WIDTHS, 0.5)}, "one must enter at 0"),
        ({"attack_width": "half"}, "attack_width=half is unknown"),
        ({"share": 1.5}, "share=1.5 is out of range"),
        ({"regularizers": [GradientInconsistency()]}, "give an adversary"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Defence(widths=WIDTHS, **settings)


def test_without_adversary_and_widths_it_is_cross_entropy():
    torch.manual_seed(0)
    alone = ResNet(Uniform("4"), n=1).eval()
    images, labels = batch()
    plain, defended = CrossEntropy()(alone, images, labels, START), Defence()(alone, images, labels, START)
    assert torch.equal(plain["loss"], defended["loss"])


def test_a_share_of_the_batch_is_attacked_and_both_parts_are_weighed(net):
    images, labels = batch(8)
    recorder = Recorder(net)
    net.eval()
    defence = Defence(
        widths=("4",), adversary=recorder, share=0.25, clean_weight=2, adversarial_weight=3, order="cycle"
    )
    figures = defence(net, images, labels, START)
    assert recorder.batches == [2]
    logits = net(torch.cat([torch.ones(2, 3, 32, 32), images[2:]]))
    assert torch.equal(figures["logits"], logits)
    expected = 3 * F.cross_entropy(logits[:2], labels[:2]) + 2 * F.cross_entropy(logits[2:], labels[2:])
    torch.testing.assert_close(figures["loss"], expected)
    torch.testing.assert_close(figures["clean_loss"], F.cross_entropy(logits[2:], labels[2:]))


def test_all_widths_of_a_step_are_averaged(net):
    images, labels = batch()
    net.eval()
    losses = []
    for width in WIDTHS:
        set_width(net, width)
        losses.append(F.cross_entropy(net(images), labels))
    figures = Defence(widths=WIDTHS, order="all")(net, images, labels, START)
    torch.testing.assert_close(figures["loss"], torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("attack_width", "expected"),
    [("trained", {"2"}), ("full", {"FP"}), ("mixed", set(WIDTHS)), ("adaptive", set(WIDTHS))],
)
def test_where_adversarial_images_are_made(net, attack_width, expected):
    recorder = Recorder(net, looks=60)
    defence = Defence(widths=WIDTHS, order="lowest", adversary=recorder, attack_width=attack_width)
    torch.manual_seed(0)
    defence(net, *batch(), START)
    assert set(recorder.widths) == expected
    if attack_width == "mixed":
        assert 15 < collections.Counter(recorder.widths)["2"] < 45


def test_adaptive_attacks_go_where_images_succeed(net):
    recorder = Recorder(net, looks=300)
    defence = Defence(widths=WIDTHS, order="cycle", adversary=recorder, attack_width="adaptive")
    defence.success.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    defence(net, *batch(), START)
    assert collections.Counter(recorder.widths)["4"] > 250
    assert defence.success[0] > 0
    assert "success" in defence.state_dict()


def test_the_network_is_left_at_the_trained_width(net):
    Defence(widths=WIDTHS, order="lowest", adversary=Recorder(net), attack_width="full")(net, *batch(), START)
    assert next(module for module in net.modules() if isinstance(module, Switchable)).active == "2"


@pytest.mark.parametrize(("order", "validated"), [("lowest", ("2",)), ("cycle", WIDTHS)])
def test_a_network_is_validated_at_the_widths_that_are_trained(net, order, validated):
    recipe = Recipe(epochs=1, batch_size=8, optimizer=torch.optim.SGD)
    training = Classifier(net, recipe, classes=10, seed=0, objective=Defence(widths=WIDTHS, order=order))
    training.eval()
    logged = {}
    training.log = lambda name, value, **_: logged.__setitem__(name, value)
    images, labels = batch()
    training.validation_step((images, labels), 0)
    losses = []
    for width in validated:
        set_width(net, width)
        losses.append(F.cross_entropy(net(images), labels).item())
    assert logged["val_loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert {name for name in logged if "." in name} == {f"val_accuracy.{width}" for width in validated}


def test_gradient_inconsistency_is_one_for_equal_networks_and_none_for_one_width(net):
    images, labels = batch()
    same = switchable(lambda width: ResNet(Uniform("FP"), n=1), WIDTHS)
    regularizer = GradientInconsistency(sigma=0)
    set_width(same, "FP")
    torch.testing.assert_close(regularizer(same, images, labels, ("FP",), WIDTHS), torch.tensor(1.0))
    assert regularizer(net, images, labels, ("FP",), ("FP",)) == 0


@pytest.mark.parametrize("regularizer", [GradientInconsistency(), GradientDisalignment(), FeatureDisalignment()])
def test_a_width_has_nothing_to_be_kept_apart_from_when_it_is_alone(net, regularizer):
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    assert regularizer(net, *batch(), ("FP",), ("FP",)) == 0
    assert not passes
    alone = ResNet(Uniform("4"), n=1)
    figures = Defence(widths=["4"], adversary=Recorder(net), regularizers=[regularizer])(alone, *batch(), START)
    assert figures[regularizer.name] == 0
    figures["loss"].backward()


@pytest.mark.parametrize("disalignment", [GradientDisalignment, FeatureDisalignment])
def test_the_cells_of_the_histograms_can_be_chosen(net, disalignment):
    images, labels = batch()
    by_cell = {}
    for cell in (4, 8):
        set_width(net, "FP")
        by_cell[cell] = disalignment(cell=cell, alpha=0)(net, images, labels, ("FP",), ("FP", "2")).item()
    assert by_cell[8] > by_cell[4] > 0  # the larger the cells, the more alike histograms are by chance


@pytest.mark.parametrize("regularizer", [GradientInconsistency(), GradientDisalignment(), FeatureDisalignment()])
def test_a_step_against_its_gradient_lowers_a_regularizer(net, regularizer):
    images, labels = batch(16)

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        return regularizer(net, images, labels, ("FP",), ("FP", "8"))

    before = value()
    before.backward()
    weights = {p: p.detach().clone() for p in net.parameters() if p.grad is not None}
    length = torch.stack([p.grad.norm() for p in weights]).norm()
    after = []
    for step in (0.3, 0.1, 0.03, 0.01):
        with torch.no_grad():
            for parameter, weight in weights.items():
                parameter.copy_(weight - step * parameter.grad / length)
        after.append(value().item())
    assert min(after) < before.item() - 1e-3
    assert net.training


def test_gradient_noise_changes_gradients_only(net):
    images, labels = batch()
    net.eval()
    noise = GradientNoise(sigma=0.1)

    def gradients(context) -> tuple[torch.Tensor, torch.Tensor]:
        net.zero_grad()
        with context:
            logits = net(images)
        F.cross_entropy(logits, labels).backward()
        return logits.detach(), net.stem[0].weight.grad.clone()

    logits, clean = gradients(GradientNoise(sigma=0.0).in_backward_of(net))
    same, noisy = gradients(noise.in_backward_of(net))
    assert torch.equal(logits, same)
    assert not torch.equal(clean, noisy)
    assert F.cosine_similarity(clean.flatten(), noisy.flatten(), dim=0) > 0.5
    assert not any(module._forward_hooks for module in net.modules())


def test_input_gradients_are_those_of_the_batchs_own_statistics_and_leave_the_network_alone(net):
    images, labels = batch()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    (gradient,) = input_gradients(net, images, labels, ("FP",))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    leaf = images.clone().requires_grad_()
    F.cross_entropy(net(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(gradient.detach(), leaf.grad, rtol=1e-3, atol=1e-5)
    assert not torch.equal(
        net.state_dict()["stem.1.by_width.FP.running_mean"], before["stem.1.by_width.FP.running_mean"]
    )


def test_running_statistics_cannot_be_played_against_the_regularizers(net):
    images, labels = batch()
    values = []
    for _ in range(2):
        torch.manual_seed(0)
        values.append(GradientInconsistency()(net, images, labels, ("FP",), WIDTHS))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(1.0)
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("a_qapa", [True, False])
@pytest.mark.parametrize("dbwt", [True, False])
@pytest.mark.parametrize("gir", ["inconsistency", "noise", "none"])
def test_the_parts_of_qadt_r_switch(net, a_qapa, dbwt, gir):
    recorder = Recorder(net, looks=40)
    widths = WIDTHS if dbwt else ("FP", "2")
    defence = qadt_r(widths=widths, adversary=recorder, a_qapa=a_qapa, dbwt=dbwt, gir=gir)
    late = Step(5, 10, 1)
    figures = defence(net, *batch(), late)
    assert defence.schedule.trained(late) == (("2",) if not dbwt else defence.schedule.trained(late))
    assert (set(recorder.widths) == {"FP"}) == (not a_qapa)
    assert ("gradient_inconsistency" in figures) == (gir == "inconsistency")
    assert (defence.gradient_noise is not None) == (gir == "noise")
    assert set(defence.schedule.active(START)) == ({"FP", "8"} if dbwt else set(widths))
    figures["loss"].backward()
    assert widths_of(net) == WIDTHS


def test_without_dbwt_one_width_is_trained_so_there_may_be_no_more_than_it_and_fp(net):
    with pytest.raises(ValueError, match="trains the lowest width alone"):
        qadt_r(widths=WIDTHS, adversary=Recorder(net), dbwt=False)


def test_the_loss_is_the_sum_of_its_parts_times_their_weights(net):
    weights = {"clean_loss": 0.7, "adversarial_loss": 1.3, "gradient_inconsistency": 2.5}
    defence = Defence(
        widths=WIDTHS,
        order="all",
        adversary=Recorder(net),
        clean_weight=weights["clean_loss"],
        adversarial_weight=weights["adversarial_loss"],
        regularizers=[GradientInconsistency(weights["gradient_inconsistency"])],
    )
    figures = defence(net, *batch(), START)
    parts = {name: weight * figures[name] for name, weight in weights.items()}
    assert all(part > 0 for part in parts.values())
    assert figures["loss"].item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)


def test_the_noise_reaches_the_gradients_of_the_training(net):
    def gradients(noise):
        torch.manual_seed(1)
        net.zero_grad()
        Defence(widths=WIDTHS, gradient_noise=noise)(net, *batch(), START)["loss"].backward()
        return net.stem[0].weight.grad.clone()

    plain, noisy = gradients(None), gradients(GradientNoise(0.1))
    assert not torch.equal(plain, noisy)
    assert torch.equal(plain, gradients(GradientNoise(0.0)))


def test_a_network_that_cannot_be_trained_like_this_is_refused_before_it_is(net):
    late = Defence(widths=WIDTHS, enters={"2": 0.5})
    with pytest.raises(ValueError, match="1 epochs are too few: widths 2 would never be trained"):
        late.check(net, epochs=1)
    late.check(net, epochs=2)
    with pytest.raises(ValueError, match="1 epochs of 3 steps are too few: widths 2 would never be trained"):
        Defence(widths=WIDTHS, order="cycle").check(net, epochs=1, steps_per_epoch=3)
    for demanding in (
        Defence(gradient_noise=GradientNoise(0.1)),
        Defence(adversary=Recorder(net), regularizers=[FeatureDisalignment(0.5)]),
    ):
        demanding.check(net, epochs=1)
        with pytest.raises(ValueError, match="does not say where its stages end"):
            demanding.check(nn.Flatten(), epochs=1)
