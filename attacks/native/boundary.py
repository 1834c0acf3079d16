"""Boundary Attack (Brendel et al. 2018; seed paper §3.4), both rules ART has had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.native.arithmetic import column
from attacks.native.randomness import per_image_generators
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult

_PROPOSAL_VALUES = 2**21
"""Values of the proposals held at a time: 8 MiB, and as much again for each of two temporaries."""


@torch.no_grad()
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
    variant: Literal["closest", "first"] = "closest",
    snapshots: Sequence[int] = (),
    start: Tensor | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Walk from a noise image of another class towards the clean image, along the decision boundary.

    Decisions alone are used. An image for which none of `init_size` noise images is adversarial is
    returned clean. Each image has its own stream of random numbers, by its position in `x`.

    Args:
        max_iter: steps per image.
        delta, epsilon: first sizes of the orthogonal step and of the step towards the image, relative
            to the distance; adapted per image by `step_adapt`.
        num_trial: trials per step; sample_size: proposals per trial.
        init_size: noise images tried for a start.
        min_epsilon: stop once `epsilon` is smaller.
        variant: ``closest``, ART from 1.6 on: any wrong class is accepted and the closest candidate
            kept; ``first``, ART up to 1.5: only the class of the start, and the first candidate.
        snapshots: iterations whose images are kept in `AttackResult.snapshots`; 0 is the start.
        start: images to start from, shape of `x`; where they are not adversarial, noise is drawn.
        targets: classes to be predicted, (n,); None: any class but the predicted one.

    Raises:
        ValueError: a parameter out of range, an unknown variant, or a snapshot outside 0..max_iter.
    """
    check_parameters(
        {
            "max_iter": max_iter,
            "delta": delta,
            "epsilon": epsilon,
            "step_adapt": step_adapt,
            "num_trial": num_trial,
            "sample_size": sample_size,
            "init_size": init_size,
            "min_epsilon": min_epsilon,
        }
    )
    check_choices(boundary, {"variant": variant})
    listed = isinstance(snapshots, Sequence) and all(isinstance(at, int) for at in snapshots)
    if not listed or any(not 0 <= at <= max_iter for at in snapshots):
        raise ValueError(f"snapshots={snapshots} must lie between 0 and max_iter={max_iter}")
    check_images(x, y, targets)
    kept = {at: x.clone() for at in sorted(set(snapshots))}
    x_adv = x.clone()
    at_once = max(1, _PROPOSAL_VALUES // max(1, int(sample_size) * x[:1].numel()))
    generators = per_image_generators(seed, len(x), x.device)
    drawn = 0
    with Evaluator(model, x) as network:
        for images in torch.arange(len(x), device=x.device).split(at_once):
            own = [generators[i] for i in images.tolist()]
            predicted = network.predict(x[images])
            goal = None if targets is None else targets[images]
            given = None if start is None else start[images]
            current, classes, tries = _find_start(network, x[images], predicted, goal, given, init_size, own)
            drawn += tries
            walk = _Walk(
                network=network,
                x=x[images],
                current=current,
                wanted=classes if variant == "first" or targets is not None else None,
                avoided=predicted,
                active=torch.nonzero(classes >= 0).flatten(),
                delta=torch.full((len(images),), delta, dtype=torch.float64, device=x.device),
                epsilon=torch.full((len(images),), epsilon, dtype=torch.float64, device=x.device),
                generators=own,
                keep_closest=variant == "closest",
                step_adapt=step_adapt,
                num_trial=num_trial,
                sample_size=sample_size,
                min_epsilon=min_epsilon,
            )
            for step in range(max_iter + 1):
                if step in kept:
                    kept[step][images] = walk.current
                if step < max_iter and len(walk.active):
                    walk.step()
            x_adv[images] = walk.current
    return AttackResult(
        x_adv, network.forwards, network.backwards, extra={"start_tries": drawn / max(1, len(x))}, snapshots=kept
    )


def _find_start(
    network: Evaluator,
    x: Tensor,
    predicted: Tensor,
    goal: Tensor | None,
    starts: Tensor | None,
    tries: int,
    generators: Sequence[Generator],
) -> tuple[Tensor, Tensor, int]:
    """Adversarial starts, their classes, −1 where none was found (the start is then the image), and noise drawn."""
    current = x.clone()
    classes = torch.full_like(predicted, -1)
    drawn = 0

    def settle(rows: Tensor, candidates: Tensor) -> Tensor:
        found = network.predict(candidates)
        good = found != predicted[rows] if goal is None else found == goal[rows]
        current[rows[good]], classes[rows[good]] = candidates[good], found[good]
        return rows[~good]

    missing = torch.arange(len(x), device=x.device)
    if goal is not None:
        missing = missing[goal != predicted]
    if starts is not None:
        missing = settle(missing, starts[missing])
    for _ in range(tries):
        if not len(missing):
            break
        noise = torch.empty(len(missing), *x.shape[1:], device=x.device)
        for image, row in zip(noise, missing.tolist(), strict=True):
            image.uniform_(generator=generators[row])
        drawn += len(missing)
        missing = settle(missing, noise)
    return current, classes, drawn


@dataclass
class _Walk:
    """Boundary walks of k images in step.

    Attributes:
        current: adversarial images (k, …).
        wanted: classes that count as adversarial, (k,); None: any but those `avoided`.
        active: rows still walking.
        delta, epsilon: step sizes of each walk, (k,).
    """

    network: Evaluator
    x: Tensor
    current: Tensor
    wanted: Tensor | None
    avoided: Tensor
    active: Tensor
    delta: Tensor
    epsilon: Tensor
    generators: Sequence[Generator]
    keep_closest: bool
    step_adapt: float
    num_trial: int
    sample_size: int
    min_epsilon: float

    def step(self) -> None:
        """One iteration of all active walks: an orthogonal step, then one towards the image."""
        survivors, owners = self._orthogonal_step()
        self._step_towards_image(survivors, owners)
        self.active = self.active[self.epsilon[self.active] >= self.min_epsilon]

    def _orthogonal_step(self) -> tuple[Tensor, Tensor]:
        """Proposals that stay adversarial, and the rows they belong to; rows without any stop walking."""
        rows = self.active
        survivors, owners = [], []
        for _ in range(self.num_trial):
            proposals = self._proposals(rows)
            good = self._adversarial(proposals.flatten(0, 1), rows.repeat_interleave(self.sample_size))
            good = good.view(len(rows), self.sample_size)
            share = good.sum(1) / self.sample_size
            self._adapt(self.delta, rows, share)
            survivors.append(proposals[good])
            owners.append(rows.repeat_interleave(good.sum(1)))
            rows = rows[share == 0]
            if not len(rows):
                break
        self.active = self.active[~torch.isin(self.active, rows)]
        return torch.cat(survivors), torch.cat(owners)

    def _proposals(self, rows: Tensor) -> Tensor:
        """Random steps on the sphere around each image, pulled back to its radius, (rows, sample_size, …)."""
        current, shape = self.current[rows].flatten(1), self.x.shape[1:]
        towards = self.x[rows].flatten(1) - current
        noise = torch.empty(len(rows), self.sample_size, current.shape[1], device=current.device)
        for image, row in zip(noise, rows.tolist(), strict=True):
            image.normal_(generator=self.generators[row])
        radius = towards.norm(dim=1)
        delta = self.delta[rows].float()
        hypotenuse = (1 + delta**2).sqrt()
        unit = (towards / radius[:, None])[:, None, :]
        noise *= (delta * radius / hypotenuse)[:, None, None] / noise.norm(dim=2, keepdim=True)
        along = (noise * unit).sum(2, keepdim=True)
        noise.addcmul_(along, unit, value=-1)
        noise += (current - ((1 - hypotenuse) / hypotenuse)[:, None] * towards)[:, None, :]
        return noise.clamp_(0, 1).view(len(rows), self.sample_size, *shape)

    def _step_towards_image(self, survivors: Tensor, owners: Tensor) -> None:
        """Move the survivors; rows for which none stays adversarial keep a survivor and stop walking."""
        x = self.x[owners]
        for _ in range(self.num_trial):
            candidates = torch.lerp(survivors, x, column(self.epsilon[owners].float(), x)).clamp_(0, 1)
            good = self._adversarial(candidates, owners)
            rows = owners.unique_consecutive()
            total = torch.bincount(owners, minlength=len(self.x))
            hits = torch.bincount(owners[good], minlength=len(self.x))
            share = hits[rows] / total[rows]
            self._adapt(self.epsilon, rows, share)
            self._keep_one(candidates[good], owners[good])
            left = hits[owners] == 0
            survivors, owners, x = survivors[left], owners[left], x[left]
            if not len(owners):
                return
        self._keep_one(survivors, owners)
        self.active = self.active[~torch.isin(self.active, owners)]

    def _keep_one(self, candidates: Tensor, owners: Tensor) -> None:
        """Make one candidate of each owner its current image: the closest to the image, or the first."""
        if not len(owners):
            return
        distance = (candidates - self.x[owners]).flatten(1).norm(dim=1)
        rank = distance if self.keep_closest else torch.arange(len(owners), device=owners.device, dtype=torch.float32)
        lowest = torch.full((len(self.x),), torch.inf, device=owners.device).scatter_reduce(0, owners, rank, "amin")
        chosen = rank == lowest[owners]
        self.current[owners[chosen]] = candidates[chosen]

    def _adversarial(self, images: Tensor, rows: Tensor) -> Tensor:
        predicted = self.network.predict(images)
        return predicted != self.avoided[rows] if self.wanted is None else predicted == self.wanted[rows]

    def _adapt(self, size: Tensor, rows: Tensor, share: Tensor) -> None:
        shrink, grow = rows[share < 0.2], rows[share > 0.5]
        size[shrink] *= self.step_adapt
        size[grow] /= self.step_adapt
