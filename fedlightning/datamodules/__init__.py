"""The clients' data: data modules, partitions, and the vision sets."""

from fedlightning.datamodules.arrays import FederatedArrays
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.cifar import CIFAR10, CIFAR100
from fedlightning.datamodules.classes import Classes
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.datasets import ClientDatasets, FederatedDataset
from fedlightning.datamodules.digits import Digits
from fedlightning.datamodules.dirichlet import Dirichlet
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.generated import GeneratedClients
from fedlightning.datamodules.held import ClientData
from fedlightning.datamodules.mnist import EMNIST, MNIST, FashionMNIST
from fedlightning.datamodules.partition import IID, Assignment, Partition
from fedlightning.datamodules.partition_file import PartitionFile
from fedlightning.datamodules.shards import Shards
from fedlightning.datamodules.tasks import Batch, ClientLoader, ClientTask, Split

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "IID",
    "MNIST",
    "Assignment",
    "Batch",
    "Classes",
    "ClientData",
    "ClientDatasets",
    "ClientLoader",
    "ClientTask",
    "DatasetExamples",
    "Digits",
    "Dirichlet",
    "Examples",
    "FashionMNIST",
    "FederatedArrays",
    "FederatedDataModule",
    "FederatedDataset",
    "GeneratedClients",
    "Partition",
    "PartitionFile",
    "Shards",
    "Split",
    "TensorExamples",
]
