import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.art import boundary, carlini_wagner, fgsm, jsma, uap
from attacks.art.estimator import CountingClassifier, PyTorchClassifier, seeded


def stock(victim) -> PyTorchClassifier:
    return PyTorchClassifier(
        victim.model, nn.CrossEntropyLoss(), input_shape=victim.x.shape[1:], nb_classes=10, clip_values=(0.0, 1.0)
    )


@pytest.mark.parametrize("label", [None, 3, np.arange(12) % 10, np.full(12, 7)], ids=["all", "one", "many", "same"])
def test_class_gradient_is_that_of_art(victim, label):
    x = victim.x.numpy()
    ours = CountingClassifier(victim.model, victim.x).class_gradient(x, label=label)
    theirs = stock(victim).class_gradient(x, label=label)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(theirs).max() > 0


def test_loss_gradient_and_predictions_are_those_of_art(victim):
    x, y = victim.x.numpy(), np.eye(10, dtype=np.float32)[victim.y]
    estimator = CountingClassifier(victim.model, victim.x)
    np.testing.assert_allclose(estimator.loss_gradient(x, y), stock(victim).loss_gradient(x, y), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(estimator.predict(x), stock(victim).predict(x), rtol=1e-5, atol=1e-5)


def test_float64_images_are_taken(victim):
    x = victim.x.numpy().astype(np.float64)
    estimator = CountingClassifier(victim.model, victim.x)
    assert estimator.predict(x).dtype == np.float32
    assert estimator.class_gradient(x, label=1).dtype == np.float32
    assert estimator.loss_gradient(x, np.eye(10)[victim.y]).dtype == np.float32


def test_many_images_are_passed_in_chunks(linear):
    x = torch.rand(CHUNK + 7, 1, 4, 4)
    sizes = []
    linear.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    estimator = CountingClassifier(linear.model, x)
    sizes.clear()
    logits = estimator.predict(x.numpy(), batch_size=1)
    gradients = estimator.class_gradient(x.numpy(), label=np.zeros(len(x), dtype=int))
    assert sizes == [CHUNK, 7] * 2
    np.testing.assert_allclose(logits, linear.model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[-1, 0].ravel(), linear.model.weight[0].detach().numpy(), rtol=1e-6)


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


ATTACKS = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, eps=0.1),
    "jsma": lambda model, x, y: jsma(model, x, y, theta=1.0, gamma=0.02),
    "uap": lambda model, x, y: uap(model, x, y, eps=0.2, attacker_eps=0.1, max_iter=2),
    "carlini_wagner": lambda model, x, y: carlini_wagner(model, x, y, max_iter=2, binary_search_steps=2),
    "boundary": lambda model, x, y: boundary(model, x, y, max_iter=2),
}
BY_GRADIENT = {"fgsm", "jsma", "uap", "carlini_wagner"}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_image_passed_through_the_network_is_counted(victim, name: str):
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
        results.append(ATTACKS[name](linear.model, linear.x, linear.y).x_adv)
    assert torch.equal(*results)


def test_attacking_a_network_in_training_mode_leaves_its_statistics_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4))
    before = net[1].running_mean.clone()
    fgsm(net.train(), torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]), eps=0.1)
    assert torch.equal(net[1].running_mean, before)


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
