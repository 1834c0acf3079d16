"""Universal Adversarial Perturbation (Moosavi-Dezfooli et al. 2017; seed paper §3.4, eq. 16-17) through ART."""

from __future__ import annotations

import torch
from art.attacks.evasion import UniversalPerturbation
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result, seeded
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_parameters
from attacks.result import AttackResult


def uap(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 10.0,
    attacker_eps: float = 0.3,
    delta: float = 0.2,
    max_iter: int = 20,
    seed: int = 0,
) -> AttackResult:
    """One perturbation for all images, grown image by image with FGSM.

    It stops after the pass in which the share of fooled images reaches 1 − `delta`, so an adversarial
    accuracy just below `delta` is set by that rule and not by the network.

    Args:
        eps: L∞ bound ξ of the perturbation, above 0; from 1 on it bounds nothing.
        attacker_eps: step of the FGSM inside, in [0, 1].
        delta: accuracy at which to stop, in (0, 1).
        max_iter: largest number of passes over the images.
        seed: of the order of the images in each pass.
    """
    check_parameters({"eps": min(eps, 1.0), "attacker_eps": attacker_eps, "delta": delta, "max_iter": max_iter})
    if eps == 0:
        raise ValueError("eps=0 leaves no perturbation: it must be above 0")
    check_images(x, y)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        attack = UniversalPerturbation(
            estimator,
            attacker="fgsm",
            attacker_params={"eps": attacker_eps, "batch_size": len(x)},
            delta=delta,
            max_iter=max_iter,
            eps=eps,
            batch_size=len(x),
            verbose=False,
        )
        with seeded(seed):
            x_adv = attack.generate(x.cpu().numpy(), y=y.cpu().numpy())
        perturbation = torch.from_numpy(attack.noise[0]).float()
        return as_result(
            network, x_adv, x, perturbation=perturbation, extra={"fooling_rate": float(attack.fooling_rate)}
        )
