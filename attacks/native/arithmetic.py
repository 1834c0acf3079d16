"""Elementwise functions of the attacks, rounded as NumPy, and so ART, rounds them.

torch's float32 tanh differs from NumPy's in the last bit of every third value. In a network with few
levels that bit can push an activation over a threshold, and hundreds of steps later the attack has
taken another way. On a CPU both libraries share the memory, nothing is copied; elsewhere torch rounds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SMOOTHER = 0.999999
"""ART's factor that keeps arctanh finite at 0 and 1."""


def tanh(w: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(w.numpy())) if w.device.type == "cpu" else torch.tanh(w)


def atanh(u: Tensor) -> Tensor:
    return torch.from_numpy(np.arctanh(u.numpy())) if u.device.type == "cpu" else torch.atanh(u)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² of each row, (n,)."""
    squares = (a - b).square_().flatten(1)
    return torch.from_numpy(np.sum(squares.numpy(), axis=1)) if squares.device.type == "cpu" else squares.sum(1)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, (n,), in a shape that broadcasts against images (n, …)."""
    return values.view(-1, *[1] * (like.ndim - 1))
