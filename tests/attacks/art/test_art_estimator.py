import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.art import any_attack, boundary, carlini_wagner, fgsm, jsma, square, uap
from attacks.art.estimator import CountingClassifier, PyTorchClassifier, seeded
from attacks.evaluation import Evaluator


def stock(victim) -> PyTorchClassifier:
    return PyTorchClassifier(
        victim.model, nn.CrossEntropyLoss(), input_shape=victim.x.shape[1:], nb_classes=10, clip_values=(0.0, 1.0)
    )


def counting(victim) -> CountingClassifier:
    return CountingClassifier(Evaluator(victim.model, victim.x), victim.x)


@pytest.mark.parametrize("label", [None, 3, np.arange(12) % 10, np.full(12, 7)], ids=["all", "one", "many", "same"])
def test_class_gradient_is_that_of_art(victim, label):
    x = victim.x.numpy()
    ours = counting(victim).class_gradient(x, label=label)
    theirs = stock(victim).class_gradient(x, label=label)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(theirs).max() > 0


def test_loss_gradient_and_predictions_are_those_of_art(victim):
    x, y = victim.x.numpy(), np.eye(10, dtype=np.float32)[victim.y]
    estimator = counting(victim)
    np.testing.assert_allclose(estimator.loss_gradient(x, y), stock(victim).loss_gradient(x, y), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(estimator.predict(x), stock(victim).predict(x), rtol=1e-5, atol=1e-5)


def test_float64_images_are_taken(victim):
    x = victim.x.numpy().astype(np.float64)
    estimator = counting(victim)
    assert estimator.predict(x).dtype == np.float32
    assert estimator.class_gradient(x, label=1).dtype == np.float32
    assert estimator.loss_gradient(x, np.eye(10)[victim.y]).dtype == np.float32


def test_many_images_are_passed_in_the_evaluator_s_blocks(linear):
    network = Evaluator(linear.model, linear.x)
    network.block = 16
    x = torch.rand(2 * 16 + 7, 1, 4, 4)
    estimator = CountingClassifier(network, x)
    sizes = []
    linear.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    logits = estimator.predict(x.numpy(), batch_size=1)
    gradients = estimator.class_gradient(x.numpy(), label=np.zeros(len(x), dtype=int))
    assert sizes == [16, 16, 8] * 2  # the last one padded to a multiple of eight
    np.testing.assert_allclose(logits, linear.model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[-1, 0].ravel(), linear.model.weight[0].detach().numpy(), rtol=1e-6)


def test_the_evaluator_counts_images_and_not_what_they_are_padded_with(victim):
    estimator = counting(victim)
    x, y = victim.x.numpy(), victim.y.numpy()
    network = estimator.network
    assert (network.forwards, network.backwards) == (1, 0)  # the one that told the number of classes
    estimator.predict(x)
    assert (network.forwards, network.backwards) == (13, 0)
    estimator.loss_gradient(x, y)
    estimator.class_gradient(x, label=y)
    assert (network.forwards, network.backwards) == (37, 24)
    estimator.class_gradient(x)
    assert (network.forwards, network.backwards) == (49, 24 + 10 * 12)


class Counter(nn.Module):
    """Pass images through and count those that come by, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self.count_gradient)
        return self.model(x)

    def count_gradient(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


PGD = {"eps": 0.1, "eps_step": 0.05, "max_iter": 2, "num_random_init": 1}
ATTACKS = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, eps=0.1),
    "jsma": lambda model, x, y: jsma(model, x, y, theta=1.0, gamma=0.02),
    "uap": lambda model, x, y: uap(model, x, y, eps=0.2, attacker_eps=0.1, max_iter=2),
    "carlini_wagner": lambda model, x, y: carlini_wagner(model, x, y, max_iter=2, binary_search_steps=2),
    "boundary": lambda model, x, y: boundary(model, x, y, max_iter=2),
    "square": lambda model, x, y: square(model, x, y, max_iter=2, p_init=0.3),
    "any_attack": lambda model, x, y: any_attack(model, x, y, class_path="ProjectedGradientDescentNumpy", params=PGD),
}
BY_GRADIENT = {"fgsm", "jsma", "uap", "carlini_wagner", "any_attack"}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_image_passed_through_the_network_is_counted(victim, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attacks.evaluation._MULTIPLE", 1)  # no padding
    counter = Counter(victim.model)
    result = ATTACKS[name](counter, victim.x, victim.y)
    assert (result.forwards, result.backwards) == (counter.forwards, counter.backwards)
    assert (result.backwards > 0) == (name in BY_GRADIENT)


@pytest.mark.parametrize("name", ATTACKS)
def test_results_are_float32_images_and_the_arguments_are_left_alone(victim, name: str):
    x, y = victim.x.clone(), victim.y.clone()
    result = ATTACKS[name](victim.model, x, y)
    assert result.x_adv.dtype == torch.float32
    assert result.x_adv.shape == x.shape
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    assert torch.equal(x, victim.x)
    assert torch.equal(y, victim.y)
    assert not x.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_leave_global_generators_alone(linear, name: str):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    ATTACKS[name](linear.model, linear.x, linear.y)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_do_not_depend_on_global_generators(linear, name: str):
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(ATTACKS[name](linear.model, linear.x, linear.y).x_adv)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacking_a_network_in_training_mode_leaves_its_statistics_and_its_mode_alone(name: str):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 4)).train()
    net[2].eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    ATTACKS[name](net, torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert [module.training for module in net] == [True, True, False, True, True]


def test_seeded_puts_the_generators_back():
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    drawn = []
    for _ in range(2):
        with seeded(11):
            drawn.append((random.random(), np.random.rand()))
    with pytest.raises(KeyError), seeded(12):
        raise KeyError
    assert drawn[0] == drawn[1]
    assert (random.random(), np.random.rand()) == expected
