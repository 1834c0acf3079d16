"""Spatial sensitivity: where on an image a patch does most harm."""

from __future__ import annotations

import math

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from attacks.evaluation import Evaluator, check_images

_TOP_SHARE = 0.1


@torch.no_grad()
def sensitivity_map(
    model: nn.Module, x: Tensor, y: Tensor, patch: Tensor, *, stride: int = 2, opacity: float = 1.0
) -> Tensor:
    """Attack success rate of one fixed patch at each place of a grid, (rows, columns), in [0, 1].

    Place (i, j) has the patch's upper left pixel at (i · stride, j · stride); all places lie wholly in the image.
    The rate is the share of the n images that are misclassified. A patch of noise or of one colour gives the
    control: what covering the place does.

    Args:
        x, y: images (n, c, h, w) in [0, 1] that the network gets right, and their labels (n,).
        patch: (c, k, k) in [0, 1].
        stride: pixels between places, at least 1; 2 suits images of 32 pixels, 16 those of 224.
        opacity: share of the patch in the pixels it covers, in (0, 1].

    Raises:
        ValueError: one of these does not hold, or there are no images. Whether the network gets the images right
            is not checked.
    """
    _check(x, y, patch, stride, opacity)
    side = patch.shape[-1]
    tops, lefts = (range(0, length - side + 1, stride) for length in x.shape[2:])
    with Evaluator(model, x) as network:
        rates = [[_misclassified(network, _pasted(x, patch, top, left, opacity), y) for left in lefts] for top in tops]
    return torch.tensor(rates)


def _pasted(x: Tensor, patch: Tensor, top: int, left: int, opacity: float) -> Tensor:
    side = patch.shape[-1]
    covered = x.clone()
    covered[:, :, top : top + side, left : left + side].lerp_(patch, opacity)
    return covered


def _misclassified(network: Evaluator, x: Tensor, y: Tensor) -> float:
    return int((network.predict(x) != y).sum()) / len(x)


def _check(x: Tensor, y: Tensor, patch: Tensor, stride: int, opacity: float) -> None:
    check_images(x, y)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"x must be at least one image (n, channels, height, width), not {tuple(x.shape)}")
    channels, height, width = x.shape[1:]
    side = patch.shape[-1] if patch.ndim else 0
    if patch.shape != (channels, side, side) or not 1 <= side <= min(height, width):
        raise ValueError(
            f"patch must be ({channels}, k, k) with k from 1 to {min(height, width)}, not {tuple(patch.shape)}"
        )
    if not bool(((patch >= 0) & (patch <= 1)).all()):
        raise ValueError("patch must lie in [0, 1]")
    if stride < 1:
        raise ValueError(f"stride={stride} is out of range: it must be a whole number of at least 1")
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity={opacity} is out of range: it must be a number in (0, 1]")


def compare_maps(a: Tensor, b: Tensor) -> dict[str, float]:
    """How far two sensitivity maps agree on which places are weak.

    `spearman`: rank correlation over the places. `top_overlap`: the share of the top tenth of places of `a`, rounded
    up, that are in that of `b`; by chance a tenth, so rounded. Places with equal rates at the end of a tenth are
    drawn, in each map apart, and the expected share is given, so that a map with many such places agrees little even
    with itself. Both are NaN where a map has one value only.

    Raises:
        ValueError: the maps have different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"maps of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.flatten().double(), b.flatten().double()
    constant = any(bool((values == values[0]).all()) for values in (a, b))
    if constant:
        return {"spearman": math.nan, "top_overlap": math.nan}
    top = math.ceil(_TOP_SHARE * len(a))
    return {
        "spearman": float(spearmanr(a.numpy(), b.numpy()).statistic),
        "top_overlap": float(_membership(a, top) @ _membership(b, top)) / top,
    }


def _membership(values: Tensor, top: int) -> Tensor:
    """How likely each of the values is among the `top` largest, in [0, 1], `top` in all."""
    least = values.topk(top).values[-1]
    above, tied = values > least, values == least
    return above + tied * ((top - above.sum()) / tied.sum())
