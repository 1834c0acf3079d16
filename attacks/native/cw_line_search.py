"""ART's Carlini-Wagner L2: gradient descent with a line search, and a search over the constant c.

Precision follows ART's: points and gradients in float32, trial points, losses and rates in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evaluation import Evaluator
from attacks.losses import Hinge
from attacks.native.arithmetic import atanh, squared_distance, tanh

_LARGEST_CONST = 10e10
_SMOOTHER = 0.999999  # keeps arctanh finite at 0 and 1


@dataclass
class _Best:
    """The closest success of each image so far; the image itself where there is none."""

    x_adv: Tensor
    distance: Tensor

    def update(self, images: Tensor, success: Tensor, distance: Tensor, x_adv: Tensor) -> None:
        better = success & (distance < self.distance[images])
        self.distance[images[better]] = distance[better]
        self.x_adv[images[better]] = x_adv[better]


class LineSearch:
    """The search for one batch of images; see `attacks.carlini_wagner` for the settings."""

    def __init__(
        self,
        network: Evaluator,
        x: Tensor,
        goal: Hinge,
        learning_rate: float,
        max_iter: int,
        max_halving: int,
        max_doubling: int,
        art_defects: bool,
    ) -> None:
        self.network = network
        self.x = x
        self.goal = goal
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_halving = max_halving
        self.max_doubling = max_doubling
        self.art_defects = art_defects
        # every descent starts at the clean image, so that is evaluated once for all values of c
        self.start = atanh((x * 2 - 1) * _SMOOTHER)
        self.logits, up, down = network.gradients(x, goal.upper, goal.lower)
        self.slope = up - down
        self.best = _Best(x.clone(), torch.full((len(x),), torch.inf, device=x.device))

    def run(self, initial_const: float, steps: int) -> Tensor:
        """Adversarial images; an image without success is returned clean."""
        n, device = len(self.x), self.x.device
        const = torch.full((n,), initial_const, dtype=torch.float64, device=device)
        lower = torch.zeros_like(const)
        doubling = torch.ones(n, dtype=torch.bool, device=device)
        active = torch.arange(n, device=device)
        for _ in range(steps):
            active = active[const[active] < _LARGEST_CONST]
            if not len(active):
                break
            reached = self._descend(active, const[active])
            doubling[active[reached]] = False
            before = const[active]
            after = self._next_const(before, lower[active], reached, doubling[active])
            lower[active[~reached]] = (after if self.art_defects else before)[~reached]
            const[active] = after
            # the same constant again would be the same descent again
            active = active[after != before]
        return self.best.x_adv

    @staticmethod
    def _next_const(const: Tensor, lower: Tensor, reached: Tensor, doubling: Tensor) -> Tensor:
        missed = torch.where(doubling, const * 2, const + (const - lower) / 2)
        return torch.where(reached, (lower + const) / 2, missed)

    def _descend(self, images: Tensor, const: Tensor) -> Tensor:
        """Descend from the clean images (k,) at the given constants; tells which of them ever succeeded."""
        x, goal = self.x[images], self.goal[images]
        start = self.start[images]
        state = _Point(start, x.clone(), self.slope[images], torch.empty_like(start))
        state.aim(slice(None), x, const, tanh(state.w))
        distance = torch.zeros(len(x), device=x.device)
        loss = const * goal(self.logits[images]).double()
        rate = torch.full_like(const, self.learning_rate)
        stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        success = loss <= 0
        reached = success
        for step in range(self.max_iter):
            self.best.update(images, success, distance, state.x_adv)
            held = loss.clone(), distance.clone()
            best_rate = self._search_rate(x, goal, const, state, loss, distance, rate, stuck)
            stuck = best_rate == 0
            moved = torch.nonzero(~stuck).flatten()
            if not self.art_defects:
                loss, distance = held
            if len(moved):
                bend = state.move(moved, best_rate)
                if step + 1 < self.max_iter:
                    part = goal[moved]
                    logits, up, down = self.network.gradients(state.x_adv[moved], part.upper, part.lower)
                    state.slope[moved] = up - down
                    state.aim(moved, x, const, bend)
                else:
                    logits = self.network.logits(state.x_adv[moved])
                distance[moved] = squared_distance(x[moved], state.x_adv[moved])
                loss[moved] = const[moved] * goal[moved](logits).double() + distance[moved]
            success = loss - distance <= 0
            reached = reached | success
        self.best.update(images, success, distance, state.x_adv)
        return reached

    def _search_rate(
        self,
        x: Tensor,
        goal: Hinge,
        const: Tensor,
        state: _Point,
        loss: Tensor,
        distance: Tensor,
        rate: Tensor,
        stuck: Tensor,
    ) -> Tensor:
        """The rate (k,) with the lowest loss tried, 0 where none lowers it; `rate` becomes the next first rate.

        It is halved until the loss falls or, if that is at once, doubled for as long as it goes on falling.
        `loss` and `distance` become those tried last. Where an image is `stuck`, no rate having helped
        in the step before, the first rate is the last one of that step and known to fail.
        """
        before, best_loss = loss.clone(), loss.clone()
        best_rate = torch.zeros_like(rate)
        halvings = torch.zeros_like(rate)

        def attempt(rows: Tensor) -> None:
            self._try(rows, x, goal, const, state, rate, loss, distance)
            better = rows[loss[rows] < best_loss[rows]]
            best_rate[better] = rate[better]
            best_loss[better] = loss[better]

        for attempts in range(self.max_halving):
            rows = torch.nonzero(loss >= before).flatten()
            if not len(rows):
                break
            attempt(rows if attempts else rows[~stuck[rows]])
            rate[rows] /= 2
            halvings[rows] += 1
        rate *= 2
        at_once = halvings == 1
        for _ in range(self.max_doubling):
            rows = torch.nonzero(at_once & (loss <= best_loss)).flatten()
            if not len(rows):
                break
            rate[rows] *= 2
            attempt(rows)
        rate[at_once] /= 2
        return best_rate

    def _try(
        self,
        rows: Tensor,
        x: Tensor,
        goal: Hinge,
        const: Tensor,
        state: _Point,
        rate: Tensor,
        loss: Tensor,
        distance: Tensor,
    ) -> None:
        """Loss and distance of a step of size `rate`; a block at a time, so that float64 stays in the cache."""
        for block in rows.split(self.network.block):
            trial = state.at(block, rate).tanh_().add_(1).div_(2)
            squared = (trial - x[block]).square_().flatten(1).sum(1)
            hinge = goal[block](self.network.logits(trial.float()))
            loss[block] = const[block] * hinge.double() + squared
            distance[block] = squared.float()


@dataclass
class _Point:
    """Where the descents of k images stand.

    Attributes:
        w, x_adv: in tanh space and as images.
        slope: gradient of the hinge by the image.
        direction: of descent, in tanh space.
    """

    w: Tensor
    x_adv: Tensor
    slope: Tensor
    direction: Tensor

    def aim(self, rows: Tensor | slice, x: Tensor, const: Tensor, tanh_w: Tensor) -> None:
        """Compute the direction of descent from the slope; `tanh_w` is that of the rows."""
        by_x = (self.slope[rows] * _column(const[rows], x)).float() + 2 * (self.x_adv[rows] - x[rows])
        self.direction[rows] = -(by_x * ((1 - tanh_w.square()) / (2 * _SMOOTHER)))

    def at(self, rows: Tensor, rate: Tensor) -> Tensor:
        """Points in tanh space at the given rates, float64."""
        return self.w[rows] + _column(rate[rows], self.w) * self.direction[rows]

    def move(self, rows: Tensor, rate: Tensor) -> Tensor:
        """Go there; returns tanh w of the rows."""
        self.w[rows] = self.at(rows, rate).float()
        tanh_w = tanh(self.w[rows])
        self.x_adv[rows] = (tanh_w + 1) / 2
        return tanh_w


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
