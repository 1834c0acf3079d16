"""Image data sets, in memory or mapped into it, and the batch loader that feeds them."""

from qnn.data.batches import Batches
from qnn.data.cifar10 import cifar10
from qnn.data.digits import digits
from qnn.data.image_folder import image_folder
from qnn.data.imagenet import imagenet
from qnn.data.images import ImageData, Split
from qnn.data.mnist import mnist

__all__ = ["Batches", "ImageData", "Split", "cifar10", "digits", "image_folder", "imagenet", "mnist"]
