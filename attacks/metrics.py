"""The per-image record of an attack and the figures drawn from it (seed paper §3.2, §6.3)."""

from __future__ import annotations

from statistics import median

import pandas as pd
from scipy.stats import binomtest
from torch import Tensor

DISTANCES = ("l0", "l1", "l2", "linf")
_WINDOW = 11  # pixels along the window of SSIM
_AT_ONCE = 100  # images it is taken of at a time, because it holds dozens of their size


def per_image_record(
    indices: Tensor,
    labels: Tensor,
    x: Tensor,
    x_adv: Tensor,
    clean_logits: Tensor,
    adv_logits: Tensor,
    targets: Tensor | None = None,
) -> pd.DataFrame:
    """One row per attacked image.

    Columns: `index` (position in the test split), `label`, `clean_prediction`, `adv_prediction`,
    `target` (targeted attacks only), `evaded` (adversarial image not classified as its label),
    `success` (evaded; for a targeted attack: classified as the target), `gave_up` (returned
    unchanged and not successful), `outcome` in words, `l0` (changed input values, channels counted
    apart), `l1`, `l2`, `linf` (pixels in [0, 1]), `correlation` (Pearson's, of the input values of the clean and
    the adversarial image; NaN where either is uniform) and, on the adversarial image, `margin` (logit of the
    label minus the largest other logit) and `label_rank` (classes whose logit is larger than the
    label's: 0 where the label is still predicted, at most 1 where it is among the first two).
    """
    difference = (x_adv - x).flatten(1).double()
    predicted = adv_logits.argmax(1)
    evaded = predicted != labels
    success = evaded if targets is None else predicted == targets
    gave_up = (difference == 0).all(1) & ~success
    own = adv_logits.gather(1, labels[:, None])
    others = adv_logits.scatter(1, labels[:, None], float("-inf")).max(1, keepdim=True).values
    columns = {
        "index": indices,
        "label": labels,
        "clean_prediction": clean_logits.argmax(1),
        "adv_prediction": predicted,
        **({} if targets is None else {"target": targets}),
        "evaded": evaded,
        "success": success,
        "gave_up": gave_up,
        "l0": (difference != 0).sum(1),
        "l1": difference.abs().sum(1),
        "l2": difference.norm(dim=1),
        "linf": difference.abs().amax(1),
        "correlation": _correlation(x, x_adv),
        "margin": (own - others).squeeze(1),
        "label_rank": (adv_logits > own).sum(1),
    }
    frame = pd.DataFrame({name: tensor.cpu().numpy() for name, tensor in columns.items()})
    frame["outcome"] = "resisted"
    frame.loc[frame["gave_up"], "outcome"] = "attack gave up: returned clean"
    frame.loc[frame["success"], "outcome"] = "success"
    return frame


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (n,) of images (n, …)."""
    a, b = (images.flatten(1).double() for images in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    interval = binomtest(int(hits), int(n)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def summarise(record: pd.DataFrame) -> dict[str, float]:
    """Figures of one attack on n images, each a plain number.

    `adversarial_accuracy`: share still classified as their label, of all n (eq. 28), with its 95 %
    Wilson interval `…_low`, `…_high`; `evasion_rate`: 1 − that (eq. 29); `attack_success_rate`: share
    of successes, of all n (equal to the evasion rate for untargeted attacks). Distances: `l2` is the
    mean over successful images as in the paper, `l2_median` their median, `l2_all` the mean over all
    n; likewise `l0`, `l1`, `linf`. They are absent where no image was successful. `gave_up`: number
    of images returned unchanged.
    """
    n = len(record)
    kept = int((~record["evaded"]).sum())
    low, high = wilson_interval(kept, n)
    figures = {
        "n": n,
        "adversarial_accuracy": kept / n,
        "adversarial_accuracy_low": low,
        "adversarial_accuracy_high": high,
        "evasion_rate": 1 - kept / n,
        "attack_success_rate": float(record["success"].mean()),
        "gave_up": int(record["gave_up"].sum()),
    }
    successful = record[record["success"]]
    for name in DISTANCES:
        figures[f"{name}_all"] = float(record[name].mean())
        if len(successful):
            figures[name] = float(successful[name].mean())
            figures[f"{name}_median"] = float(median(successful[name]))
    return figures


def visibility(x: Tensor, x_adv: Tensor) -> dict[str, float]:
    """`ssim`: mean structural similarity (Wang et al. 2004) of images (n, c, h, w) in [0, 1] and their attacked ones.

    1 where nothing is to be seen. Empty for no images, and for images smaller than its window of 11 pixels.
    """
    if not len(x) or min(x.shape[2:]) < _WINDOW:
        return {}
    from torchmetrics.image import StructuralSimilarityIndexMeasure  # over half a second, which only patches need

    similarity = StructuralSimilarityIndexMeasure(data_range=1.0).to(x.device)
    for clean, attacked in zip(x.split(_AT_ONCE), x_adv.split(_AT_ONCE), strict=True):
        similarity.update(attacked, clean)
    return {"ssim": float(similarity.compute())}  # type: ignore[arg-type]  # a pair only if asked for
