"""Objectives of gradient attacks, given as their gradient by the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evaluation import Cotangent, check_classes, one_hot


def cross_entropy(classes: Tensor, *, sign: int = 1, scale: float = 1.0) -> Cotangent:
    """`sign` times the cross-entropy of `classes` (n,), of logits multiplied by `scale`.

    Summed over images, so an image's gradient does not depend on how many there are.
    """

    def by_logits(logits: Tensor, rows: slice) -> Tensor:
        return (sign * scale) * (torch.softmax(scale * logits, 1) - one_hot(classes[rows], logits))

    return by_logits


def exact_cross_entropy(classes: Tensor, *, sign: int = 1) -> Cotangent:
    """As `cross_entropy`, and exact also where float32 rounds the probability of the class to 1.

    Its gradient by the logit of the class, p − 1, is summed from the probabilities of the others.
    """

    def by_logits(logits: Tensor, rows: slice) -> Tensor:
        check_classes(classes[rows], logits)
        own = classes[rows][:, None]
        others = sign * torch.softmax(logits, 1).scatter(1, own, 0.0)
        return others.scatter(1, own, -others.sum(1, keepdim=True))

    return by_logits


def margin(classes: Tensor, *, sign: int = 1, scale: float = 1.0) -> Cotangent:
    """`sign` times (largest other logit − logit of `classes`), of logits multiplied by `scale`."""

    def by_logits(logits: Tensor, rows: slice) -> Tensor:
        own = classes[rows]
        return sign * scale * (one_hot(runner_up(logits, own), logits) - one_hot(own, logits))

    return by_logits


def logit(classes: Tensor) -> Cotangent:
    """The logit of `classes` (n,)."""

    def by_logits(logits: Tensor, rows: slice) -> Tensor:
        return one_hot(classes[rows], logits)

    return by_logits


@dataclass(frozen=True)
class Hinge:
    """Carlini and Wagner's max(0, upper logit − lower logit + κ).

    Untargeted, the upper logit is that of the label and the lower one the largest other; targeted, the
    lower one is that of the target and the upper one the largest other. 0 means success with margin κ.
    """

    classes: Tensor
    targeted: bool
    confidence: float

    def __getitem__(self, rows: Tensor | slice) -> Hinge:
        return Hinge(self.classes[rows], self.targeted, self.confidence)

    def upper_and_lower(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        other = runner_up(logits, self.classes)
        return (other, self.classes) if self.targeted else (self.classes, other)

    def __call__(self, logits: Tensor) -> Tensor:
        """Its values, (n,)."""
        upper, lower = (logits.gather(1, which[:, None])[:, 0] for which in self.upper_and_lower(logits))
        return (upper - lower + self.confidence).clamp(min=0)

    def upper(self, logits: Tensor, rows: slice) -> Tensor:
        return one_hot(self[rows].upper_and_lower(logits)[0], logits)

    def lower(self, logits: Tensor, rows: slice) -> Tensor:
        return one_hot(self[rows].upper_and_lower(logits)[1], logits)


def runner_up(logits: Tensor, classes: Tensor) -> Tensor:
    """The class of the largest logit apart from `classes`, (n,)."""
    check_classes(classes, logits)
    return logits.scatter(1, classes[:, None], float("-inf")).argmax(1)
