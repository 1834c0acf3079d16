"""The networks of both papers, each built from a quantiser (`qnn.quantizers`).

Every network takes float32 images in [0, 1], NCHW, and returns logits of shape (n, classes).
`topology`, where a network has it, is ``auto`` (the quantised topology exactly when the quantiser does
something), ``fp`` or ``quantized``; forcing it gives the control networks that hold the topology fixed across
bit widths. `stage_ends`, where a network has it, names the modules that end its first three stages.
"""

from qnn.models.cifar_convnet import CifarConvNet
from qnn.models.imagenet_resnet import ImageNetResNet
from qnn.models.lenet import LeNet5
from qnn.models.mnist_convnet import MnistConvNet
from qnn.models.resnet import ResNet
from qnn.models.vgg import VGG

__all__ = ["VGG", "CifarConvNet", "ImageNetResNet", "LeNet5", "MnistConvNet", "ResNet"]
