"""The attacks of the seed paper and their yardsticks PGD and Square, on tensors and in batches.

ART's keywords, defaults and algorithms; all images of a batch go in step, those that are finished leave it.
"""

from attacks.native.boundary import boundary
from attacks.native.carlini_wagner import carlini_wagner
from attacks.native.fgsm import fgsm
from attacks.native.jsma import jsma
from attacks.native.pgd import pgd
from attacks.native.square import square
from attacks.native.uap import uap

__all__ = ["boundary", "carlini_wagner", "fgsm", "jsma", "pgd", "square", "uap"]
