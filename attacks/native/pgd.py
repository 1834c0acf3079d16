"""Projected gradient descent (Madry et al. 2018), the yardstick of the single-step attacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Cotangent, Evaluator, check_images
from attacks.losses import cross_entropy, margin
from attacks.native.arithmetic import column
from attacks.native.randomness import per_image_generators
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult

_LOSSES: dict[str, Callable[..., Cotangent]] = {"cross_entropy": cross_entropy, "margin": margin}


@torch.no_grad()
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Literal["inf", 2] = "inf",
    eps: float = 0.3,
    eps_step: float | None = None,
    max_iter: int = 100,
    num_random_init: int = 0,
    loss: Literal["cross_entropy", "margin"] = "cross_entropy",
    logit_scale: float = 1.0,
    early_stop: bool = True,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Steps of size `eps_step` along the gradient, projected on the `eps` ball around the image and on [0, 1].

    The last point of the first restart that succeeds is returned; where none does, that of the last
    restart, so an image is never returned clean for failing.

    Args:
        norm: ``inf`` (steps along the sign of the gradient) or 2 (along the gradient at unit length).
        eps: radius of the ball; eps_step: None: 2.5 eps / max_iter.
        max_iter: steps per restart.
        num_random_init: restarts from random points of the ball; 0: one start from the image.
        loss: ``cross_entropy``, or ``margin``: largest other logit minus that of the label, whose
            gradient does not vanish where the softmax saturates.
        logit_scale: multiplies the logits in the cross-entropy; small values undo that saturation.
        early_stop: an image is finished at its first success; False: all steps are made.
        targets: classes to move towards, (n,); None: away from `y`.

    Raises:
        ValueError: a parameter out of range, or an unknown norm or loss.
    """
    check_choices(pgd, {"norm": norm, "loss": loss})
    check_parameters(
        {
            "norm": norm,
            "eps": eps,
            "eps_step": eps_step,
            "max_iter": max_iter,
            "num_random_init": num_random_init,
            "logit_scale": logit_scale,
        }
    )
    step_size = 2.5 * eps / max_iter if eps_step is None else eps_step
    check_images(x, y, targets)
    goal = y if targets is None else targets
    sign = 1 if targets is None else -1
    ball = (_L2Ball if norm == 2 else _MaxBall)(eps)
    x_adv = x.clone()
    unbroken = torch.arange(len(x), device=x.device)
    generators = per_image_generators(seed, len(x) if num_random_init else 0, x.device)
    with Evaluator(model, x) as network:
        for _ in range(max(1, num_random_init)):
            if not len(unbroken):
                break
            clean, own_goal = x[unbroken], goal[unbroken]
            point = clean.clone()
            if num_random_init:
                point = ball.random_points(clean, [generators[i] for i in unbroken.tolist()])
            objective = functools.partial(_LOSSES[loss], sign=sign, scale=logit_scale)
            broken = _ascend(network, ball, clean, point, own_goal, objective, sign, step_size, max_iter, early_stop)
            x_adv[unbroken] = point
            unbroken = unbroken[~broken]
    return AttackResult(x_adv, network.forwards, network.backwards)


def _ascend(
    network: Evaluator,
    ball: _Ball,
    clean: Tensor,
    point: Tensor,
    goal: Tensor,
    objective: Callable[[Tensor], Cotangent],
    sign: int,
    step_size: float,
    max_iter: int,
    early_stop: bool,
) -> Tensor:
    """Move `point` (k, …) in place; tells which images are broken at its end."""
    active = torch.arange(len(clean), device=clean.device)
    for _ in range(max_iter):
        if not len(active):
            break
        logits, gradient = network.gradients(point[active], objective(goal[active]))
        if early_stop:
            going = (logits.argmax(1) == goal[active]) == (sign > 0)
            active, gradient = active[going], gradient[going]
        moved = point[active] + step_size * ball.steepest(gradient.nan_to_num_(0.0))
        point[active] = ball.project(moved, clean[active]).clamp_(0, 1)
    broken = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
    if len(active):
        broken[active] = (network.predict(point[active]) != goal[active]) == (sign > 0)
    return broken


class _Ball(Protocol):
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of size 1 along which a function with this gradient grows most."""

    def project(self, points: Tensor, centres: Tensor) -> Tensor: ...

    def random_points(self, centres: Tensor, generators: Sequence[Generator]) -> Tensor:
        """A uniformly drawn point of the ball around each centre, in [0, 1]."""


class _MaxBall:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, points: Tensor, centres: Tensor) -> Tensor:
        return centres + (points - centres).clamp_(-self.radius, self.radius)

    def random_points(self, centres: Tensor, generators: Sequence[Generator]) -> Tensor:
        offsets = torch.empty(centres.shape, device=centres.device)
        for offset, generator in zip(offsets, generators, strict=True):
            offset.uniform_(-self.radius, self.radius, generator=generator)
        return (centres + offsets).clamp_(0, 1)


class _L2Ball:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    def steepest(self, gradient: Tensor) -> Tensor:
        # scaled first, or the squares of small gradients underflow
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = gradient / column(gradient.flatten(1).abs().amax(1), gradient).clamp(min=tiny)
        return scaled / _norms(scaled).clamp(min=tiny)

    def project(self, points: Tensor, centres: Tensor) -> Tensor:
        offsets = points - centres
        return centres + offsets * (self.radius / _norms(offsets).clamp(min=self.radius))

    def random_points(self, centres: Tensor, generators: Sequence[Generator]) -> Tensor:
        offsets = torch.empty(centres.shape, device=centres.device)
        shares = torch.empty(len(centres), *[1] * (centres.ndim - 1), device=centres.device)
        for offset, share, generator in zip(offsets, shares, generators, strict=True):
            offset.normal_(generator=generator)
            share.uniform_(generator=generator)
        lengths = self.radius * shares ** (1 / centres[0].numel())
        return (centres + offsets / _norms(offsets) * lengths).clamp_(0, 1)


def _norms(images: Tensor) -> Tensor:
    """L2 norms (n, 1, …) of images (n, …)."""
    return column(images.flatten(1).norm(dim=1), images)
