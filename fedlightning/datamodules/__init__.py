"""The clients' data: data modules, partitions, and the vision sets."""

from typing import TYPE_CHECKING

from fedlightning.core.batches import Batch, Split
from fedlightning.core.near_names import suggesting
from fedlightning.core.views import CENTRAL, EvaluationView
from fedlightning.datamodules.arrays import FederatedArrays
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.central import CentralTest
from fedlightning.datamodules.class_views import ClassViews, FewClassDigits
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.client_splits import ClientSplit, GroupSplit, RandomSplit, TimeSplit
from fedlightning.datamodules.collation import Pad
from fedlightning.datamodules.colored import ColoredDigits, ColoredImages
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.datasets import ClientDatasets, FederatedDataset
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.few_classes import FewClasses
from fedlightning.datamodules.folders import FederatedFolders
from fedlightning.datamodules.generated import GeneratedClients
from fedlightning.datamodules.leaf import LEAF
from fedlightning.datamodules.loaders import ClientLoader, ClientTask, ViewLoader
from fedlightning.datamodules.partitions.base import IID, Assignment, Partition
from fedlightning.datamodules.partitions.classes import Classes
from fedlightning.datamodules.partitions.dirichlet import Dirichlet
from fedlightning.datamodules.partitions.extended_dirichlet import ExtendedDirichlet
from fedlightning.datamodules.partitions.flower import FlowerPartition
from fedlightning.datamodules.partitions.from_file import PartitionFile
from fedlightning.datamodules.partitions.natural import NaturalIds
from fedlightning.datamodules.partitions.shards import Shards
from fedlightning.datamodules.partitions.sizes import QuantitySkew, Sizes
from fedlightning.datamodules.permuted import PermutedLabels
from fedlightning.datamodules.preferences import DigitPreferences, ZipfPreferences
from fedlightning.datamodules.public import PublicShare
from fedlightning.datamodules.structured import StructuredExamples
from fedlightning.datamodules.tables import FederatedTable
from fedlightning.datamodules.text import FederatedText, WordHashes
from fedlightning.datamodules.vision.cifar import CIFAR10, CIFAR100
from fedlightning.datamodules.vision.digits import Digits
from fedlightning.datamodules.vision.mnist import EMNIST, MNIST, FashionMNIST

__all__ = [
    "CENTRAL",
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "IID",
    "LEAF",
    "MNIST",
    "Assignment",
    "Batch",
    "CentralTest",
    "ClassViews",
    "Classes",
    "ClientData",
    "ClientDatasets",
    "ClientLoader",
    "ClientSplit",
    "ClientTask",
    "ColoredDigits",
    "ColoredImages",
    "DatasetExamples",
    "DigitPreferences",
    "Digits",
    "Dirichlet",
    "EvaluationView",
    "Examples",
    "ExtendedDirichlet",
    "FashionMNIST",
    "FederatedArrays",
    "FederatedDataModule",
    "FederatedDataset",
    "FederatedFolders",
    "FederatedTable",
    "FederatedText",
    "FewClassDigits",
    "FewClasses",
    "FlowerPartition",
    "GeneratedClients",
    "GroupSplit",
    "NaturalIds",
    "Pad",
    "Partition",
    "PartitionFile",
    "PermutedLabels",
    "PublicShare",
    "QuantitySkew",
    "RandomSplit",
    "Shards",
    "Sizes",
    "Split",
    "StructuredExamples",
    "TensorExamples",
    "TimeSplit",
    "ViewLoader",
    "WordHashes",
    "ZipfPreferences",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
