"""Attacks on image classifiers, and what is measured of them.

An attack is a function ``attack(model, x, y, *, …) -> AttackResult``: `model` is any `nn.Module` that
returns logits, `x` float32 images in [0, 1] of shape (n, channels, height, width), `y` the labels of
shape (n,), int64. The attacks named here are those of `attacks.native`, most of which `attacks.art`
runs through the Adversarial Robustness Toolbox (ART) as well, and patch attacks: `google_patch` gives one
patch for all images, `located_patch` one for each, `lavan` and `patch_squares` either; `random_patch` is
the noise they are held against. `attacks.patches` has what these share.
"""

from attacks.examples import AdversarialExamples, load_examples, save_examples
from attacks.metrics import per_image_record, summarise, visibility, wilson_interval
from attacks.native import boundary, carlini_wagner, fgsm, jsma, pgd, square, uap
from attacks.patch_google import google_patch
from attacks.patch_lavan import lavan
from attacks.patch_located import located_patch
from attacks.patch_random import random_patch
from attacks.patch_squares import patch_squares
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
    "google_patch",
    "jsma",
    "lavan",
    "load_examples",
    "located_patch",
    "patch_squares",
    "per_image_record",
    "pgd",
    "random_patch",
    "save_examples",
    "select_correct",
    "square",
    "summarise",
    "uap",
    "visibility",
    "wilson_interval",
]
