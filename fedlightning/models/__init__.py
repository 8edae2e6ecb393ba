"""Networks with a body and a head."""

from typing import TYPE_CHECKING

from fedlightning.core.lr_schedules import CosineWithWarmup
from fedlightning.core.near_names import suggesting
from fedlightning.models.conv4 import Conv4
from fedlightning.models.densities import ClassDensities, GaussianClasses, RadialFlows
from fedlightning.models.layered import LayeredNetwork
from fedlightning.models.mixed import LayeredNetworks, MixedModule
from fedlightning.models.mlp import MLP
from fedlightning.models.mobilenet import MobileNet
from fedlightning.models.posterior import PosteriorNetwork
from fedlightning.models.preference import PreferenceModule, RewardMLP, RewardTable
from fedlightning.models.residual import ResidualMLP
from fedlightning.models.resnet import ResNet18
from fedlightning.models.stitched import StitchedNetwork
from fedlightning.models.timm import TimmClassifier
from fedlightning.models.torchvision import TorchvisionClassifier
from fedlightning.models.transformers import CausalLM, PretrainedModule, TransformersClassifier
from fedlightning.models.variational import (
    PosteriorConstructor,
    VariationalMLP,
    VariationalModule,
)
from fedlightning.models.vit import SmallViT

__all__ = [
    "MLP",
    "CausalLM",
    "ClassDensities",
    "Conv4",
    "CosineWithWarmup",
    "GaussianClasses",
    "LayeredNetwork",
    "LayeredNetworks",
    "MixedModule",
    "MobileNet",
    "PosteriorConstructor",
    "PosteriorNetwork",
    "PreferenceModule",
    "PretrainedModule",
    "RadialFlows",
    "ResNet18",
    "ResidualMLP",
    "RewardMLP",
    "RewardTable",
    "SmallViT",
    "StitchedNetwork",
    "TimmClassifier",
    "TorchvisionClassifier",
    "TransformersClassifier",
    "VariationalMLP",
    "VariationalModule",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
