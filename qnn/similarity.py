"""How alike two maps are: input gradients, or feature maps, of the same images at two bit widths.

The measures are those of TriQDef (ICLR 2026, arXiv 2508.12132): the cosine, overlap of edges (Sobel magnitude)
and the cosine of histograms of oriented gradients (HOG). Its paper leaves open how channels are reduced, how a
map is scaled before its edges are drawn, and the bins and cells of the histograms: what is here is ours.

Maps are (n, 1, height, width), see `feature_map` and `gradient_map`; arithmetic is at least float32. Every map is
first divided by its largest magnitude, so nothing depends on its scale; one that nowhere exceeds 1e-30 counts
as zero. All but `hard_edges` and `edge_iou` can be differentiated twice, and no map has a NaN as gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 9
EDGE_PERCENT = 15
SHARPNESS = 100.0

_ZERO = 1e-30
_EPS = 1e-8  # of a map with largest magnitude 1
_NO_DIRECTION = 1e-20


def feature_map(features: Tensor) -> Tensor:
    """The mean over channels, (n, 1, h, w), of features (n, c, h, w)."""
    return _at_least_float32(features).mean(1, keepdim=True)


def gradient_map(gradients: Tensor) -> Tensor:
    """The mean magnitude over channels, (n, 1, h, w), of input gradients (n, c, h, w)."""
    return _at_least_float32(gradients).abs().mean(1, keepdim=True)


def sobel(maps: Tensor) -> Tensor:
    """Sobel magnitude √(gx² + gy² + 1e-8), (n, 1, h, w), of maps scaled to unit maximum and padded by their border."""
    padded = _padded(_unit(maps))
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    gx = down[..., 2:] - down[..., :-2]
    gy = across[..., 2:, :] - across[..., :-2, :]
    return (gx.square() + gy.square() + _EPS).sqrt()


def soft_edges(maps: Tensor) -> Tensor:
    """TriQDef's soft binarisation sigmoid(k (A − τ)), in (0, 1), of the Sobel magnitude A scaled to unit maximum.

    k is 100 and τ the 85th percentile of the map's A, a constant to autograd. A flat map is 0.5 everywhere.
    """
    magnitude = _unit(sobel(maps))
    return torch.sigmoid(SHARPNESS * (magnitude - _threshold(magnitude)))


def hard_edges(maps: Tensor) -> Tensor:
    """True, (n, 1, h, w), where the Sobel magnitude is above the map's 85th percentile; nowhere on a flat map."""
    magnitude = sobel(maps)
    return magnitude > _threshold(magnitude)


@torch.no_grad()
def _threshold(magnitude: Tensor) -> Tensor:
    """The value, (n, 1, 1, 1), that the top `EDGE_PERCENT` of a map's values lie above where no two are the same."""
    values = magnitude.flatten(1)
    rank = values.shape[1] * EDGE_PERCENT // 100 + 1
    return values.topk(rank).values[:, -1].view(-1, 1, 1, 1)


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice coefficient 2 Σab / (Σa² + Σb²), (n,), in [0, 1], of soft edges (n, …)."""
    overlap = (a * b).flatten(1).sum(1)
    return 2 * overlap / (a.square() + b.square()).flatten(1).sum(1)


def edge_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, (n,), of hard edges (n, …); 0 where neither has an edge.

    Unrelated edges on 15 % of the pixels have 0.15 / (2 − 0.15) = 0.081 if they may lie anywhere. White noise of
    32 × 32 has 0.085: the padding makes edges more frequent on its border.
    """
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(min=1)


def hog(maps: Tensor, cell: int = 4) -> Tensor:
    """Histograms of oriented gradients, (n, 9, h // cell, w // cell), each of norm 1, or 0 where a cell is flat.

    Centred differences vote with their length for the two nearest of nine unsigned orientations: bin i is centred
    at 10° + 20° i, measured from the direction of growing columns towards that of growing rows. Rows and columns
    that fill no cell are left out.

    Raises:
        ValueError: a map is smaller than one cell.
    """
    if cell < 1 or min(maps.shape[-2:]) < cell:
        raise ValueError(f"cell={cell} does not fit into maps of {maps.shape[-2]} × {maps.shape[-1]} pixels")
    padded = _padded(_unit(maps))
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    squared = dx.square() + dy.square()
    length = squared / ((squared + _EPS).sqrt() + math.sqrt(_EPS))  # smooth at 0, and 0 there
    angle = torch.atan2(dy, dx.masked_fill(squared < _NO_DIRECTION, 1.0))
    cells = F.avg_pool2d(length * _bin_shares(angle), cell)
    return cells / (cells.square().sum(1, keepdim=True) + _EPS).sqrt()


def _bin_shares(angle: Tensor) -> Tensor:
    """What each bin (n, 9, h, w) gets of a vote at angles (n, 1, h, w) in radians: linear in the distance."""
    centres = torch.arange(BINS, device=angle.device, dtype=angle.dtype).view(1, -1, 1, 1) + 0.5
    distance = (angle * (BINS / math.pi) - centres + BINS / 2) % BINS - BINS / 2
    return (1 - distance.abs()).clamp(min=0)


def centred(histograms: Tensor) -> Tensor:
    """Histograms (n, 9, rows, columns) without each cell's mean over its bins.

    Histograms are not negative, so those of unrelated maps have a cosine far above 0: 0.73 in cells of 4 pixels
    and 0.91 in cells of 8, for white noise of 32 × 32. Without their means it is 0, as long as no direction is
    more frequent than others; it is for |noise| of a single channel, with a cosine of 0.02 and 0.05.
    """
    return histograms - histograms.mean(1, keepdim=True)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine (n,) of tensors (n, …), each taken as one vector; 0 where either is zero."""
    a, b = _unit(a).flatten(1), _unit(b).flatten(1)
    lengths = (a.square().sum(1) + _EPS).sqrt() * (b.square().sum(1) + _EPS).sqrt()
    return (a * b).sum(1) / lengths


def structural_similarity_loss(a: Tensor, b: Tensor, *, alpha: float = 0.5, beta: float = 1.0, cell: int = 4) -> Tensor:
    """`alpha` · SoftDice(edges) + `beta` · cos(HOG), (n,): 0 where the maps share nothing, alpha + beta for the same.

    The term that TriQDef's penalties on features (FDP) and on input gradients (GPDP) have in common, for one pair
    of bit widths and with its weights; the paper sums it over pairs.

    Args:
        a, b: maps (n, 1, h, w), of `feature_map` or `gradient_map`.
        cell: pixels along a cell of the histograms; 4 suits images of 32 pixels, 8 those of 224.

    Raises:
        ValueError: the shapes differ, there are several channels, or a map is smaller than one cell.
    """
    _check_same_shape(a, b)
    if a.ndim != 4 or a.shape[1] != 1:
        raise ValueError(f"maps must be (n, 1, height, width), not {tuple(a.shape)}: see feature_map and gradient_map")
    edges = soft_dice(soft_edges(a), soft_edges(b))
    return alpha * edges + beta * cosine(hog(a, cell), hog(b, cell))


def gradient_similarity(a: Tensor, b: Tensor, cell: int = 4) -> dict[str, Tensor]:
    """How alike input gradients (n, c, h, w) are, each (n,): NaN where either gradient is zero.

    `cosine` of the gradients themselves and, of their `gradient_map`, `edge_iou`, `hog_cosine` and
    `hog_cosine_centred`. The first and, but for common directions, the last are 0 for unrelated gradients; hold
    all of them against the gradients of other images.

    Raises:
        ValueError: the shapes differ, or an image is smaller than one cell.
    """
    _check_same_shape(a, b)
    maps = gradient_map(a), gradient_map(b)
    histograms = hog(maps[0], cell), hog(maps[1], cell)
    found = {
        "cosine": cosine(a, b),
        "edge_iou": edge_iou(hard_edges(maps[0]), hard_edges(maps[1])),
        "hog_cosine": cosine(*histograms),
        "hog_cosine_centred": cosine(centred(histograms[0]), centred(histograms[1])),
    }
    zero = (_largest(a) <= _ZERO).flatten() | (_largest(b) <= _ZERO).flatten()
    return {name: values.masked_fill(zero, math.nan) for name, values in found.items()}


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"maps of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _largest(x: Tensor) -> Tensor:
    """The largest magnitude of each row of `x` (n, …), (n, 1, …)."""
    return x.abs().amax(tuple(range(1, x.ndim)), keepdim=True)


def _unit(x: Tensor) -> Tensor:
    """Each row of `x` (n, …) divided by its largest magnitude, or as it is where that is zero."""
    x = _at_least_float32(x)
    largest = _largest(x)
    return x / largest.masked_fill(largest <= _ZERO, 1.0)


def _padded(maps: Tensor) -> Tensor:
    """Replicate padding by one pixel; unlike `F.pad`'s, its gradient on a GPU is the same each time."""
    maps = torch.cat([maps[..., :1, :], maps, maps[..., -1:, :]], -2)
    return torch.cat([maps[..., :1], maps, maps[..., -1:]], -1)
