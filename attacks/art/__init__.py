"""The five attacks of the seed paper and Square through the Adversarial Robustness Toolbox (ART).

Same keywords and defaults as ART's classes. What ART does slowly or without a seed is mended in
`attacks.art.estimator` and in each file, where it says so; the algorithms are ART's own.
"""

from attacks.art.any import any_attack
from attacks.art.boundary import boundary
from attacks.art.carlini_wagner import carlini_wagner
from attacks.art.fgsm import fgsm
from attacks.art.jsma import jsma
from attacks.art.square import square
from attacks.art.uap import uap

__all__ = ["any_attack", "boundary", "carlini_wagner", "fgsm", "jsma", "square", "uap"]
