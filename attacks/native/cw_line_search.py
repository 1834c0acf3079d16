"""ART's Carlini-Wagner L2: gradient descent with a line search, and a search over the constant c.

Precision follows ART's: points and gradients in float32, trial points, losses and rates in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evaluation import Evaluator
from attacks.losses import Hinge
from attacks.native.arithmetic import SMOOTHER, atanh, column, squared_distance, tanh

_LARGEST_CONST = 10e10


@dataclass(frozen=True)
class LineSearch:
    """The settings of `attacks.carlini_wagner` that a descent needs."""

    learning_rate: float
    max_iter: int
    max_halving: int
    max_doubling: int
    art_defects: bool


def search_const(
    network: Evaluator, x: Tensor, goal: Hinge, settings: LineSearch, initial_const: float, steps: int
) -> Tensor:
    """Adversarial images; an image without success is returned clean."""
    # every descent starts at the clean image, so that is evaluated once for all values of c
    logits, up, down = network.gradients(x, goal.upper, goal.lower)
    hinge, slope, start = goal(logits), up - down, atanh((x * 2 - 1) * SMOOTHER)
    best = _Best(x.clone(), torch.full((len(x),), torch.inf, device=x.device))
    const = torch.full((len(x),), initial_const, dtype=torch.float64, device=x.device)
    lower = torch.zeros_like(const)
    doubling = torch.ones(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        active = active[const[active] < _LARGEST_CONST]
        if not len(active):
            break
        descent = _Descent(
            network, settings, x[active], goal[active], const[active], start[active], hinge[active], slope[active]
        )
        reached = descent.run(best, active)
        doubling[active[reached]] = False
        before = const[active]
        after = _next_const(before, lower[active], reached, doubling[active])
        lower[active[~reached]] = (after if settings.art_defects else before)[~reached]
        const[active] = after
        # the same constant again would be the same descent again
        active = active[after != before]
    return best.x_adv


def _next_const(const: Tensor, lower: Tensor, reached: Tensor, doubling: Tensor) -> Tensor:
    missed = torch.where(doubling, const * 2, const + (const - lower) / 2)
    return torch.where(reached, (lower + const) / 2, missed)


@dataclass
class _Best:
    """The closest success of each image so far; the image itself where there is none."""

    x_adv: Tensor
    distance: Tensor

    def update(self, images: Tensor, success: Tensor, distance: Tensor, x_adv: Tensor) -> None:
        better = success & (distance < self.distance[images])
        self.distance[images[better]] = distance[better]
        self.x_adv[images[better]] = x_adv[better]


class _Descent:
    """Descents of k images from their clean image, in step, each at its own constant.

    Attributes:
        w, x_adv: where they stand, in tanh space and as images.
        slope: gradient of the hinge by the image.
        direction: of descent, in tanh space.
        loss, distance: of where they stand or, while the line is searched, of the point tried last.
        rate: the next step size to try.
        stuck: no rate lowered the loss in the step before.
    """

    def __init__(
        self,
        network: Evaluator,
        settings: LineSearch,
        x: Tensor,
        goal: Hinge,
        const: Tensor,
        start: Tensor,
        hinge: Tensor,
        slope: Tensor,
    ) -> None:
        self.network, self.settings = network, settings
        self.x, self.goal, self.const = x, goal, const
        self.w, self.x_adv, self.slope = start, x.clone(), slope
        self.direction = torch.empty_like(x)
        self._aim(torch.arange(len(x), device=x.device), tanh(start))
        self.distance = torch.zeros(len(x), device=x.device)
        self.loss = const * hinge.double()
        self.rate = torch.full_like(const, settings.learning_rate)
        self.stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def run(self, best: _Best, images: Tensor) -> Tensor:
        """All steps; `best` is kept for `images` (k,). Tells which of them ever succeeded."""
        success = reached = self.loss <= 0
        for step in range(self.settings.max_iter):
            best.update(images, success, self.distance, self.x_adv)
            held = self.loss.clone(), self.distance.clone()
            best_rate = self._search_line()
            if not self.settings.art_defects:
                self.loss, self.distance = held
            self.stuck = best_rate == 0
            moved = torch.nonzero(~self.stuck).flatten()
            if len(moved):
                self._move(moved, best_rate, last=step + 1 == self.settings.max_iter)
            success = self.loss - self.distance <= 0
            reached = reached | success
        best.update(images, success, self.distance, self.x_adv)
        return reached

    def _search_line(self) -> Tensor:
        """The rate (k,) with the lowest loss tried, 0 where none lowers it; `rate` becomes the next first rate.

        It is halved until the loss falls or, if that is at once, doubled for as long as it goes on falling.
        """
        before, best_loss = self.loss.clone(), self.loss.clone()
        best_rate, halvings = torch.zeros_like(self.rate), torch.zeros_like(self.rate)

        def attempt(rows: Tensor) -> None:
            self._try(rows)
            better = rows[self.loss[rows] < best_loss[rows]]
            best_rate[better] = self.rate[better]
            best_loss[better] = self.loss[better]

        for attempts in range(self.settings.max_halving):
            rows = torch.nonzero(self.loss >= before).flatten()
            if not len(rows):
                break
            # where the last step found nothing, the first rate is the last one tried then, known to fail
            attempt(rows if attempts else rows[~self.stuck[rows]])
            self.rate[rows] /= 2
            halvings[rows] += 1
        self.rate *= 2
        at_once = halvings == 1
        for _ in range(self.settings.max_doubling):
            rows = torch.nonzero(at_once & (self.loss <= best_loss)).flatten()
            if not len(rows):
                break
            self.rate[rows] *= 2
            attempt(rows)
        self.rate[at_once] /= 2
        return best_rate

    def _try(self, rows: Tensor) -> None:
        """Loss and distance of a step of size `rate`; a block at a time, so that float64 stays in the cache."""
        for block in rows.split(self.network.block):
            trial = self._at(block, self.rate).tanh_().add_(1).div_(2)
            squared = (trial - self.x[block]).square_().flatten(1).sum(1)
            hinge = self.goal[block](self.network.logits(trial.float()))
            self.loss[block] = self.const[block] * hinge.double() + squared
            self.distance[block] = squared.float()

    def _move(self, rows: Tensor, rate: Tensor, *, last: bool) -> None:
        self.w[rows] = self._at(rows, rate).float()
        tanh_w = tanh(self.w[rows])
        self.x_adv[rows] = (tanh_w + 1) / 2
        part = self.goal[rows]
        if last:
            logits = self.network.logits(self.x_adv[rows])
        else:
            logits, up, down = self.network.gradients(self.x_adv[rows], part.upper, part.lower)
            self.slope[rows] = up - down
            self._aim(rows, tanh_w)
        self.distance[rows] = squared_distance(self.x[rows], self.x_adv[rows])
        self.loss[rows] = self.const[rows] * part(logits).double() + self.distance[rows]

    def _at(self, rows: Tensor, rate: Tensor) -> Tensor:
        """Points in tanh space at the given rates, float64."""
        return self.w[rows] + column(rate[rows], self.w) * self.direction[rows]

    def _aim(self, rows: Tensor, tanh_w: Tensor) -> None:
        """The direction of descent from the slope; `tanh_w` is that of the rows."""
        by_hinge = (self.slope[rows] * column(self.const[rows], self.w)).float()
        by_x = by_hinge + 2 * (self.x_adv[rows] - self.x[rows])
        self.direction[rows] = -(by_x * ((1 - tanh_w.square()) / (2 * SMOOTHER)))
