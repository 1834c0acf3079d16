"""Our way through ART and ART by itself give the same adversarial images."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniL2Method, FastGradientMethod, SaliencyMapMethod, UniversalPerturbation
from torch import Tensor, nn

from attacks.art import carlini_wagner, fgsm, jsma, uap
from attacks.art.estimator import PyTorchClassifier
from attacks.evaluation import _padded

SEED = 5
FGSM = {"eps": 0.2}
JSMA = {"theta": 1.0, "gamma": 0.05}
UAP = {"eps": 0.4, "delta": 0.2, "max_iter": 3}
CW = {"confidence": 0.5, "binary_search_steps": 4, "max_iter": 5, "initial_const": 1.0, "learning_rate": 0.02}


class Padded(nn.Module):
    """Rounds as the evaluator does: at one bit many activations tie, and rounding decides between them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_padded(x))[: len(x)]


def stock(victim) -> PyTorchClassifier:
    model = Padded(victim.model).eval()
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=victim.x.shape[1:], nb_classes=10, clip_values=(0.0, 1.0)
    )


def generate(attack, victim, y: Tensor | None) -> Tensor:
    random.seed(SEED)
    np.random.seed(SEED)
    return torch.from_numpy(attack.generate(victim.x.numpy(), y=None if y is None else y.numpy()))


def compare(victim, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(victim.predict(ours), victim.predict(theirs))


def fgsm_pair(victim, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    attack = FastGradientMethod(stock(victim), targeted=targets is not None, **FGSM)
    ours = fgsm(victim.model, victim.x, victim.y, targets=targets, **FGSM)
    return ours.x_adv, generate(attack, victim, victim.y if targets is None else targets)


def jsma_pair(victim, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    attack = SaliencyMapMethod(stock(victim), verbose=False, **JSMA)
    ours = jsma(victim.model, victim.x, victim.y, targets=targets, seed=SEED, **JSMA)
    return ours.x_adv, generate(attack, victim, targets)


def carlini_wagner_pair(victim, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    attack = CarliniL2Method(stock(victim), targeted=targets is not None, batch_size=len(victim.x), verbose=False, **CW)
    ours = carlini_wagner(victim.model, victim.x, victim.y, targets=targets, **CW)
    return ours.x_adv, generate(attack, victim, victim.y if targets is None else targets)


PAIRS: dict[str, Callable] = {"fgsm": fgsm_pair, "jsma": jsma_pair, "carlini_wagner": carlini_wagner_pair}


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", PAIRS)
def test_parity(victim, name: str, targeted: bool):
    compare(victim, *PAIRS[name](victim, victim.wrong_class if targeted else None))


def test_uap_parity(victim):
    attack = UniversalPerturbation(stock(victim), attacker="fgsm", attacker_params={"eps": 0.1}, verbose=False, **UAP)
    theirs = generate(attack, victim, victim.y)
    ours = uap(victim.model, victim.x, victim.y, attacker_eps=0.1, seed=SEED, **UAP)
    compare(victim, ours.x_adv, theirs)
    np.testing.assert_allclose(ours.perturbation.numpy(), attack.noise[0], rtol=0, atol=1e-6)
    assert ours.extra == {"fooling_rate": pytest.approx(attack.fooling_rate)}
    assert ours.perturbation.abs().max() > 0
