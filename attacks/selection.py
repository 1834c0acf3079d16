"""Which images are attacked, and towards which classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 500


@dataclass(frozen=True)
class Selection:
    """The attacked images: positions in the test split, shape (n,), and their labels."""

    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.indices)


def select_correct(
    predict: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    n: int,
    seed: int,
    besides: int | None = None,
) -> Selection:
    """The first `n` images of a seeded permutation that the network classifies correctly.

    The permutation depends on the seed and the number of images alone, so networks attacked with the
    same seed are compared on the same images as far as they both get them right. If fewer than `n`
    are classified correctly, all of those are taken.

    Args:
        predict: images -> logits.
        pixels: positions -> images.
        labels: of the whole test split, (m,).
        besides: a class whose images are left out: that of a targeted attack, which has nothing to do on them.

    Raises:
        ValueError: the network gets no image right.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen: list[Tensor] = []
    found = 0
    for block in order.split(BLOCK):
        correct = predict(pixels(block)).argmax(1).cpu() == labels[block]
        if besides is not None:
            correct &= labels[block] != besides
        chosen.append(block[correct][: n - found])
        found += len(chosen[-1])
        if found == n:
            break
    indices = torch.cat(chosen)
    if not len(indices):
        raise ValueError("the network classifies no test image correctly, so there is nothing to attack")
    return Selection(indices, labels[indices])


def choose_targets(target: int | str | None, logits: Tensor, labels: Tensor, *, seed: int) -> Tensor | None:
    """Target classes (n,) of a targeted attack, or None for an untargeted one.

    Args:
        target: a class, ``random`` (per image, among the wrong ones), ``next`` (label + 1) or
            ``least_likely``.
        logits: of the clean images, (n, classes).

    Raises:
        ValueError: not one of these.
    """
    if target is None:
        return None
    classes = logits.shape[1]
    if type(target) is int and 0 <= target < classes:
        return torch.full_like(labels, target)
    if target == "random":
        generator = torch.Generator().manual_seed(seed)
        shift = torch.randint(1, classes, labels.shape, generator=generator).to(labels.device)
        return (labels + shift) % classes
    if target == "next":
        return (labels + 1) % classes
    if target == "least_likely":
        return logits.argmin(1)
    raise ValueError(
        f"attack.target={target} is unknown: use a class from 0 to {classes - 1}, random, next or least_likely"
    )


def shared_random_targets(predicted: Tensor, classes: int, *, seed: int) -> Tensor:
    """One random wrong class for all images of a predicted class, (n,): ART's targets for JSMA, drawn as ART does."""
    draws = np.random.RandomState(seed % 2**32)
    others = [np.delete(np.arange(classes), own) for own in range(classes)]
    wrong = torch.tensor([int(draws.choice(choices)) for choices in others if len(choices)], device=predicted.device)
    return wrong[predicted]
