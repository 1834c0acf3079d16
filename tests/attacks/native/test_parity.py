"""The native attacks give what ART's give."""

import functools
import itertools
import logging

import numpy as np
import pytest
import torch
from art.attacks.evasion import BoundaryAttack, SquareAttack
from scipy.stats import ks_2samp, ttest_ind
from torch import Tensor, nn
from torch.nn import functional as F

import attacks
import attacks.art
from attacks.art.estimator import CountingClassifier, seeded
from attacks.evaluation import Evaluator
from qnn.data import ImageData, Split
from qnn.quantizers import DoReFa

UAP = {"eps": 0.4, "attacker_eps": 0.1, "delta": 0.2, "max_iter": 2, "seed": 3}
CW = {"binary_search_steps": 4, "max_iter": 4, "initial_const": 1.0, "learning_rate": 1.0}
CONFIDENCE = {"FP": 2.0, "1": 1.0, "2": 2.0, "8": 5.0}


@pytest.fixture(params=CONFIDENCE)
def bits(request: pytest.FixtureRequest) -> str:
    return request.param


def l2(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


def sizes(x: Tensor, x_adv: Tensor) -> Tensor:
    """L0, L2 and L∞ of each change, (n, 3)."""
    change = (x_adv - x).flatten(1)
    return torch.stack([change.count_nonzero(1), change.norm(dim=1), change.abs().amax(1)], 1)


def assert_same_attack(victim, ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(victim.predict(ours), victim.predict(theirs))
    found = sizes(victim.x, theirs)
    close = torch.isclose(sizes(victim.x, ours), found, rtol=1e-4, atol=0).all(1)
    assert close.float().mean() >= 0.99
    assert (found[:, 0] > 0).float().mean() > 0.3


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_that_of_art(trained, bits: str, targeted: bool):
    victim = trained(bits).first(100)
    targets = victim.wrong_class if targeted else None
    ours, theirs = (
        fgsm(victim.model, victim.x, victim.y, eps=0.2, targets=targets) for fgsm in (attacks.fgsm, attacks.art.fgsm)
    )
    assert_same_attack(victim, ours.x_adv, theirs.x_adv)


@pytest.mark.parametrize(("targeted", "theta"), [(False, 1.0), (True, 0.3)])
def test_jsma_is_that_of_art(trained, bits: str, targeted: bool, theta: float):
    victim = trained(bits).first(60)
    targets = victim.wrong_class if targeted else None
    ours, theirs = (
        jsma(victim.model, victim.x, victim.y, theta=theta, gamma=0.03, targets=targets, seed=5)
        for jsma in (attacks.jsma, attacks.art.jsma)
    )
    assert_same_attack(victim, ours.x_adv, theirs.x_adv)


@pytest.mark.parametrize("targeted", [False, True])
def test_carlini_wagner_with_arts_defects_is_that_of_art(trained, bits: str, targeted: bool):
    victim = trained(bits).first(60)
    targets = victim.wrong_class if targeted else None
    ours, theirs = (
        carlini_wagner(
            victim.model, victim.x, victim.y, confidence=CONFIDENCE[bits], art_defects=True, targets=targets, **CW
        )
        for carlini_wagner in (attacks.carlini_wagner, attacks.art.carlini_wagner)
    )
    assert_same_attack(victim, ours.x_adv, theirs.x_adv)


def test_uap_is_that_of_art(trained, bits: str):
    victim = trained(bits).first(70)
    ours, theirs = (uap(victim.model, victim.x, victim.y, **UAP) for uap in (attacks.uap, attacks.art.uap))
    assert_same_attack(victim, ours.x_adv, theirs.x_adv)
    torch.testing.assert_close(ours.perturbation, theirs.perturbation, rtol=0, atol=1e-6)
    assert ours.extra["fooling_rate"] == theirs.extra["fooling_rate"]


@functools.cache
def perceptron(data: ImageData, bits: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network on 7×7 digits, on which ART walks fast, and the digits it gets right."""

    def small(split: Split) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(split.pixels(torch.arange(len(split.labels))), 4), split.labels

    torch.manual_seed(0)
    activation = DoReFa(bits).activation() if bits != "FP" else nn.ReLU()
    net = nn.Sequential(nn.Flatten(), nn.Linear(49, 64), activation, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = small(data.train)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    x, y = small(data.test)
    right = net(x).argmax(1) == y
    return net.eval(), x[right], y[right]


def arts_boundary(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, targets: Tensor | None, **settings) -> Tensor:
    logging.getLogger("art").setLevel(logging.ERROR)
    with Evaluator(model, x) as network, seeded(0):
        estimator, targeted = CountingClassifier(network, x), targets is not None
        attack = BoundaryAttack(estimator, targeted=targeted, batch_size=len(x), verbose=False, **settings)
        goal = targets if targeted else y
        return torch.from_numpy(attack.generate(x.numpy(), y=goal.numpy(), x_adv_init=start.numpy()))


def test_boundary_comes_as_close_as_that_of_art(digits_data):
    """Both draw their own numbers, so distances are compared over many walks from the same starts."""
    settings = {"max_iter": 13, "delta": 0.01, "epsilon": 0.01}
    theirs, ours = [], []
    for bits, targeted in itertools.product(("FP", "1"), (False, True)):
        model, x_right, y_right = perceptron(digits_data, bits)
        chosen = slice(60, 120) if targeted else slice(0, 60)
        x, y = x_right[chosen], y_right[chosen]
        following = (y + 1) % 10
        start = torch.stack([x_right[y_right == target][i % 10] for i, target in enumerate(following)])
        targets = following if targeted else None
        theirs.append(l2(x, arts_boundary(model, x, y, start, targets, **settings)))
        walks = [
            attacks.boundary(model, x, y, start=start, targets=targets, seed=seed, **settings) for seed in range(8)
        ]
        assert all(walk.extra["start_tries"] == 0 for walk in walks)
        ours.append(torch.stack([l2(x, walk.x_adv) for walk in walks]))
        assert ours[-1].mean() < 0.5 * l2(x, start).mean()
    theirs, ours = torch.cat(theirs), torch.cat(ours, dim=1)
    assert len(theirs) == 240
    assert ks_2samp(theirs.numpy(), ours[0].numpy()).pvalue > 0.01
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), rel=0.02)


def arts_square(victim, seed: int, **settings) -> tuple[float, float]:
    """Adversarial accuracy, and queries per image as the paper counts them: ART asks more often."""
    resisting: list[int] = []

    def adv_criterion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        broken = logits.argmax(1) != labels.argmax(1)
        resisting.append(int((~broken).sum()))
        return broken

    with Evaluator(victim.model, victim.x) as network, seeded(seed):
        attack = SquareAttack(
            CountingClassifier(network, victim.x), adv_criterion=adv_criterion, verbose=False, **settings
        )
        x_adv = torch.from_numpy(attack.generate(victim.x.numpy(), y=victim.y.numpy()))
    accuracy = (victim.predict(x_adv) == victim.y).float().mean().item()
    return accuracy, 1 + sum(resisting[1:]) / len(victim.x)


@pytest.mark.parametrize("bits", ["FP", "1"])
def test_square_is_as_strong_as_that_of_art(trained, bits: str):
    """Both draw their own numbers, so accuracies and queries are compared over several seeds."""
    victim, settings = trained(bits).first(100), {"eps": 0.15, "max_iter": 40}
    theirs = np.array([arts_square(victim, seed, **settings) for seed in range(6)])
    results = [attacks.square(victim.model, victim.x, victim.y, seed=seed, **settings) for seed in range(12)]
    broken = [victim.predict(result.x_adv) != victim.y for result in results]
    ours = np.array([(1 - b.float().mean().item(), r.forwards / 100) for b, r in zip(broken, results, strict=True)])
    assert (ttest_ind(theirs, ours).pvalue > 0.01).all()
    assert ours.mean(0) == pytest.approx(theirs.mean(0), rel=0.1)
