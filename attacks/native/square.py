"""Square Attack in L∞ (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2): random search by scores."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from attacks.evaluation import Evaluator, check_images
from attacks.losses import runner_up
from attacks.native.randomness import per_image_generators
from attacks.parameters import check_parameters
from attacks.result import AttackResult

# Shares of `max_iter` after which squares cover half as much. The paper's text leaves out 0.05; its
# authors' code and ART have it.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

# Squares whose random numbers an image's generator draws at a time.
_DRAWN_AHEAD = 100


@torch.no_grad()
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.3,
    max_iter: int = 1000,
    p_init: float = 0.8,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Vertical stripes of ±`eps`, then random squares of ±`eps`, each kept if it lowers the margin.

    The margin is the logit of the label minus the largest other one; for a targeted attack the largest
    other logit minus that of the target, where the paper has the cross-entropy. An image is finished at
    its first success; one that resists is returned at its lowest margin. No gradient is taken.

    Args:
        eps: L∞ radius, in [0, 1].
        max_iter: squares tried per image; with the stripes an image costs `max_iter` + 1 queries at most.
        p_init: share of the image the first squares cover, in (0, 1); it is halved as the attack goes on.
        targets: classes to reach, (n,); None: any but `y`.
        seed: of stripes and squares, drawn for each image apart.

    Raises:
        ValueError: a parameter out of range, or images without channels, height and width.
    """
    check_parameters({"eps": eps, "max_iter": max_iter, "p_init": p_init})
    check_images(x, y, targets)
    if x.ndim != 4:
        raise ValueError(f"x must be images (n, channels, height, width), not {tuple(x.shape)}")
    goal = y if targets is None else targets
    sign = 1 if targets is None else -1
    generators = per_image_generators(seed, len(x), x.device)
    numbers = torch.empty(len(x), _DRAWN_AHEAD, 2 + x.shape[1], device=x.device)
    with Evaluator(model, x) as network:
        x_adv = _with_stripes(x, eps, generators)
        lowest, broken = _judge(network.logits(x_adv), goal, sign)
        active = torch.nonzero(~broken).flatten()
        for step in range(max_iter):
            if not len(active):
                break
            if step % _DRAWN_AHEAD == 0:
                _draw(numbers, active, generators)
            side = _side(p_init, step / max_iter, *x.shape[2:])
            candidates = _with_squares(x, x_adv, active, numbers[active, step % _DRAWN_AHEAD], side, eps)
            margin, broken = _judge(network.logits(candidates), goal[active], sign)
            kept = (margin < lowest[active]) | broken
            x_adv[active[kept]], lowest[active[kept]] = candidates[kept], margin[kept]
            active = active[~broken]
    return AttackResult(x_adv, network.forwards, network.backwards)


def _judge(logits: Tensor, goal: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """The margin to be lowered, (n,), and which images are broken: not `goal` (sign 1), or `goal` (−1)."""
    own, other = (logits.gather(1, which[:, None])[:, 0] for which in (goal, runner_up(logits, goal)))
    return sign * (own - other), (logits.argmax(1) != goal) == (sign > 0)


def _with_stripes(x: Tensor, eps: float, generators: Sequence[Generator]) -> Tensor:
    """The images with columns of ±`eps`, the sign drawn for each column and channel."""
    numbers = torch.empty(len(x), x.shape[1], 1, x.shape[3], device=x.device)
    _draw(numbers, torch.arange(len(x)), generators)
    return (x + eps * _signs(numbers)).clamp_(0, 1)


def _with_squares(x: Tensor, x_adv: Tensor, rows: Tensor, numbers: Tensor, side: int, eps: float) -> Tensor:
    """`x_adv[rows]` with one square each, in which each channel is `x` + `eps` or `x` − `eps`.

    Args:
        numbers: in [0, 1), of shape (rows, 2 + channels): top, left and the channels' signs.
    """
    n, channels, height, width = len(rows), *x.shape[1:]
    places = torch.tensor([height - side + 1, width - side + 1], device=x.device)
    corner = (numbers[:, :2] * places).long()
    within = torch.arange(side, device=x.device)
    channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    vertical = (corner[:, :1] + within).view(n, 1, side, 1)
    horizontal = (corner[:, 1:] + within).view(n, 1, 1, side)
    candidates = x_adv[rows]
    clean = x[rows.view(-1, 1, 1, 1), channel, vertical, horizontal]
    image = torch.arange(n, device=x.device).view(-1, 1, 1, 1)
    signs = _signs(numbers[:, 2:]).view(n, channels, 1, 1)
    candidates[image, channel, vertical, horizontal] = (clean + eps * signs).clamp_(0, 1)
    return candidates


def _side(p_init: float, done: float, height: int, width: int) -> int:
    """Side of a square in pixels when a share `done` of all squares has been tried."""
    share = p_init / 2 ** bisect_left(_HALVINGS, done)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _draw(numbers: Tensor, rows: Tensor, generators: Sequence[Generator]) -> None:
    """Fill `rows` with numbers of [0, 1), each row from its own generator."""
    for row in rows.tolist():
        numbers[row].uniform_(generator=generators[row])


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)
