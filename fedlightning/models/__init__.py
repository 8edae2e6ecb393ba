"""Networks with a body and a head."""

from fedlightning.models.conv4 import Conv4
from fedlightning.models.densities import ClassDensities, GaussianClasses, RadialFlows
from fedlightning.models.mlp import MLP
from fedlightning.models.mobilenet import MobileNet
from fedlightning.models.posterior import PosteriorNetwork
from fedlightning.models.resnet import ResNet18
from fedlightning.models.torchvision import TorchvisionClassifier

__all__ = [
    "MLP",
    "ClassDensities",
    "Conv4",
    "GaussianClasses",
    "MobileNet",
    "PosteriorNetwork",
    "RadialFlows",
    "ResNet18",
    "TorchvisionClassifier",
]
