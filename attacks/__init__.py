"""Attacks on image classifiers, and what is measured of them.

An attack is a function ``attack(model, x, y, *, …) -> AttackResult``: `model` is any `nn.Module` that
returns logits, `x` float32 images in [0, 1] of shape (n, channels, height, width), `y` the labels of
shape (n,), int64. The attacks named here are those of `attacks.native`; `attacks.art` runs the same
algorithms through the Adversarial Robustness Toolbox (ART).
"""

from attacks.examples import AdversarialExamples, load_examples, save_examples
from attacks.metrics import per_image_record, summarise, wilson_interval
from attacks.native import boundary, carlini_wagner, fgsm, jsma, pgd, square, uap
from attacks.result import AttackResult
from attacks.selection import Selection, choose_targets, select_correct

__all__ = [
    "AdversarialExamples",
    "AttackResult",
    "Selection",
    "boundary",
    "carlini_wagner",
    "choose_targets",
    "fgsm",
    "jsma",
    "load_examples",
    "per_image_record",
    "pgd",
    "save_examples",
    "select_correct",
    "square",
    "summarise",
    "uap",
    "wilson_interval",
]
