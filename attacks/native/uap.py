"""Universal Adversarial Perturbation (Moosavi-Dezfooli et al. 2017; seed paper §3.4, eq. 16-17)."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.losses import cross_entropy
from attacks.parameters import check_parameters
from attacks.result import AttackResult

_SMALLEST_BLOCK = 8


@torch.no_grad()
def uap(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 10.0,
    attacker_eps: float = 0.3,
    delta: float = 0.2,
    max_iter: int = 20,
    all_passes: bool = False,
    craft_on: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> AttackResult:
    """One perturbation for all images, grown image by image with FGSM, as ART grows it.

    It stops after the pass in which the share of fooled images reaches 1 − `delta`, so an adversarial
    accuracy just below `delta` is set by that rule and not by the network.

    Args:
        eps: L∞ bound ξ of the perturbation, above 0; from 1 on it bounds nothing.
        attacker_eps: step of the FGSM inside, in [0, 1].
        delta: accuracy at which to stop, in (0, 1).
        max_iter: largest number of passes over the images.
        all_passes: make all `max_iter` passes, however many images are fooled.
        craft_on: images and labels to grow the perturbation on; None: `x` and `y` themselves.
        seed: of the order of the images in each pass, the same order as ART's.
    """
    check_parameters({"eps": min(eps, 1.0), "attacker_eps": attacker_eps, "delta": delta, "max_iter": max_iter})
    if eps == 0:
        raise ValueError("eps=0 leaves no perturbation: it must be above 0")
    images, labels = (x, y) if craft_on is None else craft_on
    check_images(x, y)
    check_images(images, labels)
    orders = random.Random(seed)
    noise = x.new_zeros(1, *x.shape[1:])
    fooled = 0.0
    passes = 0
    with Evaluator(model, images) as network:
        while passes < max_iter and len(images) and (all_passes or fooled < 1 - delta):
            order = torch.tensor(orders.sample(range(len(images)), len(images)), device=x.device)
            noise = _one_pass(network, images[order], labels[order], noise, eps, attacker_eps)
            passes += 1
            predicted = network.predict((images + noise).clamp(0, 1))
            fooled = int((predicted != labels).sum()) / len(images)
    extra = {"fooling_rate": fooled, "passes": float(passes)}
    x_adv = (x + noise).clamp(0, 1)
    return AttackResult(x_adv, network.forwards, network.backwards, perturbation=noise[0], extra=extra)


def _one_pass(
    network: Evaluator, images: Tensor, labels: Tensor, noise: Tensor, eps: float, attacker_eps: float
) -> Tensor:
    """Grow `noise` along all images in turn.

    An update changes what later images see, so they are evaluated in blocks as if there were no update:
    the first one found decides, and the block starts anew behind it.
    """
    start, size = 0, _SMALLEST_BLOCK
    while start < len(images):
        block = images[start : start + size] + noise
        own = labels[start : start + size]
        logits, gradient = network.gradients(block, cross_entropy(own))
        unfooled = torch.nonzero(logits.argmax(1) == own).flatten()
        stepped = _fgsm_step(block[unfooled], gradient[unfooled], attacker_eps)
        flips = torch.nonzero(network.predict(stepped) != own[unfooled]).flatten()
        if len(flips):
            first = int(unfooled[flips[0]])
            noise = (stepped[flips[:1]] - images[start + first]).clamp(-eps, eps)
            start += first + 1
            size = max(_SMALLEST_BLOCK, size // 2)
        else:
            start += size
            size = min(2 * size, network.block)
    return noise


def _fgsm_step(images: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """FGSM from images that may lie outside [0, 1]: towards it, but by no more than `eps` (as ART's)."""
    stepped = (images + eps * gradient.nan_to_num(0.0).sign()).clamp(0, 1)
    return images + (stepped - images).clamp(-eps, eps)
