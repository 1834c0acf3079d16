"""Boundary Attack (Brendel et al. 2018; seed paper §3.4) as ART ≥ 1.6 runs it, with a seeded start."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from art.attacks.evasion import BoundaryAttack
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result, seeded
from attacks.evaluation import Evaluator, check_images
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult


def boundary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    max_iter: int = 5000,
    delta: float = 0.01,
    epsilon: float = 0.01,
    step_adapt: float = 0.667,
    num_trial: int = 25,
    sample_size: int = 20,
    init_size: int = 100,
    min_epsilon: float = 0.0,
    variant: Literal["closest"] = "closest",
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Walk from a noise image of another class towards the clean image, along the decision boundary.

    ART draws its starting noise from an unseeded generator; here it is drawn with `seed`, all images at
    a time. An image for which none of `init_size` noise images is adversarial is returned clean.

    Args:
        max_iter: steps per image.
        delta, epsilon: first sizes of the orthogonal step and of the step towards the image, relative
            to the distance; adapted by `step_adapt`.
        num_trial: trials per step; sample_size: proposals per trial.
        init_size: noise images tried for a start.
        min_epsilon: stop once `epsilon` is smaller.
        targets: classes to be predicted, (n,); None: any class but the predicted one.
    """
    parameters = {
        "max_iter": max_iter,
        "delta": delta,
        "epsilon": epsilon,
        "step_adapt": step_adapt,
        "num_trial": num_trial,
        "sample_size": sample_size,
        "min_epsilon": min_epsilon,
    }
    check_parameters({**parameters, "init_size": init_size})
    check_choices(boundary, {"variant": variant})
    check_images(x, y, targets)
    with Evaluator(model, x) as network:
        estimator = CountingClassifier(network, x)
        clean = x.cpu().numpy()
        goal = None if targets is None else targets.cpu().numpy()
        start = _noise_start(estimator, clean, goal, init_size, np.random.default_rng(seed))
        attack = BoundaryAttack(
            estimator, targeted=targets is not None, batch_size=len(x), init_size=1, verbose=False, **parameters
        )
        attack.init_size = 0  # the start is given; where there is none, ART must not draw an unseeded one
        logging.getLogger("art.attacks.evasion.boundary").setLevel(logging.ERROR)
        labels = y.cpu().numpy() if goal is None else goal
        with seeded(seed):
            x_adv = attack.generate(clean, y=labels, x_adv_init=start)
        return as_result(network, x_adv, x)


def _noise_start(
    estimator: CountingClassifier, clean: np.ndarray, goal: np.ndarray | None, tries: int, rng: np.random.Generator
) -> np.ndarray:
    """Uniform noise that is adversarial for each image; the clean image where `tries` draws gave none."""
    predicted = estimator.predict(clean).argmax(1)
    start = clean.copy()
    missing = np.arange(len(clean)) if goal is None else np.flatnonzero(goal != predicted)
    for _ in range(tries):
        if not len(missing):
            break
        noise = rng.random((len(missing), *clean.shape[1:]), dtype=np.float32)
        found = estimator.predict(noise).argmax(1)
        adversarial = found != predicted[missing] if goal is None else found == goal[missing]
        start[missing[adversarial]] = noise[adversarial]
        missing = missing[~adversarial]
    return start
