from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from qnn.data import ImageData, Split, digits
from qnn.evaluation import evaluate, predict
from qnn.models import LeNet5, MnistConvNet, ResNet
from qnn.quantizers import DoReFa, DoReFaActivation
from qnn.recipes import Recipe
from qnn.training import Classifier, TrainingDivergedError, piecewise_constant, train

ADAM = partial(torch.optim.Adam, lr=1e-3)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def data() -> ImageData:
    whole = digits()

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return ImageData("few", whole.class_names, first(whole.train, 96), first(whole.validation, 48), whole.test)


def mnist_net(width: int = 4, bits: str = "1") -> nn.Module:
    torch.manual_seed(0)
    return MnistConvNet(DoReFa(bits), width=width)


def recipe(**settings) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": 32, "optimizer": ADAM, **settings})


def fit(data: ImageData, folder: Path, net: nn.Module | None = None, *, seed: int = 0, callbacks=(), **settings):
    net = mnist_net() if net is None else net
    return train(
        net, data, recipe(**settings), seed=seed, folder=folder, callbacks=callbacks, accelerator="cpu"
    ).state_dict()


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Recorder(Callback):
    """The learning rate each epoch starts with, and the validation loss and weights it ends with."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.losses: dict[int, float] = {}
        self.states: dict[int, State] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *args) -> None:
        self.rates.setdefault(trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.losses[trainer.current_epoch] = trainer.callback_metrics["val_loss"].item()
        state = {name: tensor.clone() for name, tensor in pl_module.net.state_dict().items()}
        self.states[trainer.current_epoch] = state


class InterruptionError(Exception):
    pass


class Interrupt(Callback):
    """Raise in `hook` of an epoch, counted from 0."""

    def __init__(self, hook: str, epoch: int) -> None:
        self.epoch = epoch
        setattr(self, hook, self.interrupt)

    def interrupt(self, trainer: pl.Trainer, *args) -> None:
        if trainer.current_epoch == self.epoch:
            raise InterruptionError


@pytest.mark.parametrize("dropout", [True, False])
def test_same_seed_gives_the_same_weights_and_another_seed_others(data: ImageData, tmp_path: Path, dropout: bool):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return MnistConvNet(DoReFa("1"), width=16) if dropout else LeNet5(DoReFa("1"))

    one, again, other = (fit(data, tmp_path / str(i), net(), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert same(one, again)
    assert not same(one, other)


def test_training_learns(data: ImageData, tmp_path: Path):
    net = mnist_net(bits="FP")
    before = evaluate(net, data.train)
    fit(data, tmp_path, net, epochs=6, optimizer=partial(torch.optim.Adam, lr=3e-3))
    after = evaluate(net, data.train)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.7


def test_the_epoch_with_the_lowest_validation_loss_is_returned(data: ImageData, tmp_path: Path):
    recorder = Recorder()
    rising = partial(torch.optim.SGD, lr=3e-3)
    scheduler = partial(piecewise_constant, after=[2], rates=[0.3])
    best = fit(
        data, tmp_path, mnist_net(bits="FP"), epochs=4, optimizer=rising, scheduler=scheduler, callbacks=[recorder]
    )
    lowest = min(recorder.losses, key=recorder.losses.__getitem__)
    assert lowest < 3, "the last rate must be too high for the last epoch to be the best"
    assert same(best, recorder.states[lowest])


def test_returned_network_is_in_eval_mode_and_is_the_one_given(data: ImageData, tmp_path: Path):
    net = mnist_net()
    trained = train(net, data, recipe(epochs=1), seed=0, folder=tmp_path, accelerator="cpu")
    assert trained is net
    assert not net.training


SCHEDULES = {
    "constant": {},
    "piecewise": {"scheduler": partial(piecewise_constant, after=[1, 2], rates=[1e-2, 1e-4])},
    "one cycle": {"scheduler": partial(OneCycleLR, max_lr=1e-2), "scheduler_interval": "step"},
    "plateau": {"scheduler": partial(ReduceLROnPlateau, patience=0, threshold=10, threshold_mode="abs", factor=0.3)},
    "long epoch, augmented": {"steps_per_epoch": 5, "crop": 2, "flip": True},
}


def test_too_few_steps_for_a_schedule_are_said_to_be(data: ImageData, tmp_path: Path):
    schedule = partial(OneCycleLR, max_lr=1e-2, pct_start=0.25)
    with pytest.raises(ValueError, match=r"^4 steps are too few for the learning rate schedule: train for more epochs"):
        fit(data, tmp_path, epochs=2, steps_per_epoch=2, scheduler=schedule, scheduler_interval="step")


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_end"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_interrupted_training_goes_on_as_if_undisturbed(data: ImageData, tmp_path: Path, schedule: str, hook: str):
    settings = {"epochs": 4, **SCHEDULES[schedule]}
    undisturbed, resumed = Recorder(), Recorder()
    best = fit(data, tmp_path / "undisturbed", callbacks=[undisturbed], **settings)
    with pytest.raises(InterruptionError):
        fit(data, tmp_path / "interrupted", callbacks=[Interrupt(hook, 2)], **settings)
    best_of_resumed = fit(data, tmp_path / "interrupted", callbacks=[resumed], **settings)
    assert list(undisturbed.rates) == [0, 1, 2, 3]
    assert resumed.rates == {epoch: undisturbed.rates[epoch] for epoch in resumed.rates}
    assert same(resumed.states[3], undisturbed.states[3])
    assert same(best_of_resumed, best)


def test_no_finished_epoch_is_trained_again(data: ImageData, tmp_path: Path):
    """Also where the validation loss has long stopped falling: here the rate is 0."""
    resumed, again = Recorder(), Recorder()
    settings = {"epochs": 4, "optimizer": partial(torch.optim.SGD, lr=0.0)}
    with pytest.raises(InterruptionError):
        fit(data, tmp_path, callbacks=[Interrupt("on_train_epoch_start", 2)], **settings)
    best = fit(data, tmp_path, callbacks=[resumed], **settings)
    assert list(resumed.rates) == [2, 3]
    assert same(fit(data, tmp_path, callbacks=[again], **settings), best)
    assert list(again.rates) == []


@pytest.mark.parametrize("epochs", [1, 3])
def test_divergence_is_an_error_each_time(data: ImageData, tmp_path: Path, epochs: int):
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"loss is (nan|inf) after epoch 1"):
            fit(data, tmp_path, epochs=epochs, optimizer=partial(torch.optim.SGD, lr=1e30))


def optimizer_of(net: nn.Module, settings: Recipe) -> torch.optim.Optimizer:
    return Classifier(net, settings, classes=10, seed=0).configure_optimizers()


def decays(net: nn.Module, settings: Recipe) -> dict[str, float]:
    groups = optimizer_of(net, settings).param_groups
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: decay_of[id(parameter)] for name, parameter in net.named_parameters()}


@pytest.mark.parametrize(
    ("net", "decayed", "names"),
    [
        (lambda: mnist_net(), r"fc0\.weight", {"fc0.weight"}),
        (lambda: mnist_net(), r"(fc0|linear)\..*", {"fc0.weight", "fc0.bias", "linear.weight", "linear.bias"}),
        (
            lambda: ResNet(DoReFa("2"), n=1),
            r".*(stem\.0|conv1|conv2|linear)\.weight",
            {"stem.0.weight", "linear.weight"} | {f"blocks.{i}.conv{j}.weight" for i in range(3) for j in (1, 2)},
        ),
    ],
)
def test_weight_decay_is_on_the_matching_parameters_alone(net, decayed: str, names: set[str]):
    found = decays(net(), recipe(weight_decay=0.25, decayed=decayed))
    assert {name for name, decay in found.items() if decay} == names
    assert set(found.values()) == {0.25, 0.0}


def test_every_parameter_decays_by_default_and_none_without_a_coefficient():
    assert set(decays(mnist_net(), recipe(weight_decay=0.1)).values()) == {0.1}
    assert set(decays(mnist_net(), recipe()).values()) == {0.0}


@pytest.mark.parametrize("decayed", ["fc9.*", "fc0", "weight"])
def test_decay_that_matches_no_whole_name_is_refused(decayed: str):
    with pytest.raises(ValueError, match=f"no parameter name matches decayed={decayed}"):
        optimizer_of(mnist_net(), recipe(weight_decay=1e-4, decayed=decayed))


def test_piecewise_constant_rates():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = piecewise_constant(optimizer, after=[1, 3, 4], rates=[0.1, 0.02, 5e-4])
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.01, 0.1, 0.1, 0.02, 5e-4, 5e-4])


def test_piecewise_constant_needs_a_rate_for_each_epoch_named():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    with pytest.raises(ValueError, match="zip"):
        piecewise_constant(optimizer, after=[1, 3], rates=[0.1])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [1e-3] * 4), ("piecewise", [1e-3, 1e-2, 1e-4, 1e-4]), ("plateau", [1e-3, 1e-3, 3e-4, 9e-5])],
)
def test_schedules_are_stepped_once_per_epoch(data: ImageData, tmp_path: Path, schedule: str, rates: list[float]):
    recorder = Recorder()
    fit(data, tmp_path, epochs=4, callbacks=[recorder], **SCHEDULES[schedule])
    assert list(recorder.rates.values()) == pytest.approx(rates)


@pytest.mark.parametrize(("schedule", "limit", "epochs"), [("piecewise", 1e-3, 2), ("plateau", 2e-4, 3)])
def test_training_ends_once_the_rate_is_below_the_limit(
    data: ImageData, tmp_path: Path, schedule: str, limit: float, epochs: int
):
    recorder = Recorder()
    fit(data, tmp_path, epochs=6, stop_below_lr=limit, callbacks=[recorder], **SCHEDULES[schedule])
    assert len(recorder.rates) == epochs
    assert min(recorder.rates.values()) >= limit


def test_evaluation_agrees_with_the_definition(data: ImageData):
    net = mnist_net().eval()
    with torch.no_grad():
        logits = net(data.test.pixels())
    figures = evaluate(net, data.test)
    assert figures["accuracy"] == pytest.approx((logits.argmax(1) == data.test.labels).double().mean().item())
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)


def test_prediction_ignores_dropout_and_batch_size(data: ImageData):
    net = mnist_net(bits="FP").train()
    images = data.test.pixels(slice(0, 30))
    whole = predict(net, images)
    assert whole.shape == (30, 10)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(net, images, batch_size=7), whole, rtol=1e-5, atol=1e-5)


def test_recipe_takes_any_optimizer_factory():
    seen: list[Iterable] = []

    def factory(groups: Iterable) -> torch.optim.Optimizer:
        seen.append(groups)
        return ADAM(groups)

    assert isinstance(optimizer_of(mnist_net(), recipe(optimizer=factory)), torch.optim.Adam)
    assert len(seen) == 1


@pytest.mark.parametrize(("precision", "computed"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_layers_alone_are_computed_in_the_precision_asked_for(data: ImageData, tmp_path: Path, precision, computed):
    net = mnist_net(bits="2")
    given: dict[type, set[torch.dtype]] = {}
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | DoReFaActivation):
            seen = given.setdefault(type(module), set())
            module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.add(output.dtype))
    state = fit(data, tmp_path, net, precision=precision)
    assert given[DoReFaActivation] == {torch.float32}
    assert all(seen == {computed} for kind, seen in given.items() if kind is not DoReFaActivation)
    assert {tensor.dtype for name, tensor in state.items() if name.endswith(("weight", "bias"))} == {torch.float32}
    assert same(state, fit(data, tmp_path / "again", mnist_net(bits="2"), precision=precision))
