"""Pictures of attacked images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

VIEW_SIDE = 112


def magnified(x: Tensor, x_adv: Tensor) -> tuple[Tensor, float]:
    """The difference of one image around mid-grey, scaled so that its largest value fills the range."""
    difference = x_adv - x
    largest = float(difference.abs().max())
    return 0.5 + difference / (2 * largest or 1), (1 / largest if largest else 0.0)


def save_grid(path: Path, x: Tensor, x_adv: Tensor, record: pd.DataFrame, class_names: Sequence[str]) -> None:
    """A PNG with one row per image: clean, adversarial, magnified difference, labels and predictions."""
    count = len(x)
    figure = Figure(figsize=(6.4, 2.15 * count), layout="constrained", dpi=90)
    axes = figure.subplots(count, 3, squeeze=False)
    for row, (clean, adversarial) in enumerate(zip(x, x_adv, strict=True)):
        facts = record.iloc[row]
        difference, factor = magnified(clean, adversarial)
        titles = (
            f"{class_names[facts['label']]}  (test image {facts['index']})",
            f"predicted {class_names[facts['adv_prediction']]}: {facts['outcome'].split(':')[0]}",
            f"difference ×{factor:.3g}, L2 {facts['l2']:.2f}, L∞ {facts['linf']:.2f}",
        )
        for axis, image, title in zip(axes[row], (clean, adversarial, difference), titles, strict=True):
            axis.imshow(_hwc(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    figure.savefig(path)


def save_patches(path: Path, patches: Tensor) -> None:
    """A PNG of patches (n, channels, k, k) side by side, enlarged."""
    figure = Figure(figsize=(1.2 * len(patches), 1.2), layout="constrained", dpi=90)
    for axis, patch in zip(figure.subplots(1, len(patches), squeeze=False)[0], patches, strict=True):
        axis.imshow(_hwc(patch), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.axis("off")
    figure.savefig(path)


def triptych(x: Tensor, x_adv: Tensor) -> np.ndarray:
    """Clean, adversarial and magnified difference side by side, (height, width, 3), uint8, enlarged."""
    images = [np.broadcast_to(_hwc(image)[..., None] if image.shape[0] == 1 else _hwc(image), (*image.shape[1:], 3))
              for image in (x, x_adv, magnified(x, x_adv)[0])]  # fmt: skip
    factor = max(1, VIEW_SIDE // x.shape[1])
    wide = np.concatenate(images, axis=1).clip(0, 1)
    return (wide * 255).round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)


def _hwc(image: Tensor) -> np.ndarray:
    array = image.cpu().permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array
