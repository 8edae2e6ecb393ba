"""The place for one's own data modules in a clone, beside the library's names.

A module here, such as ``datamodules/mine.py``, is reached from a config by
``class_path: datamodules.mine.Mine``. The folder is no part of the installed package.
"""

from fedlightning.datamodules import (
    CIFAR10,
    CIFAR100,
    EMNIST,
    IID,
    MNIST,
    Classes,
    ClassViews,
    ClientDatasets,
    ColoredDigits,
    ColoredImages,
    DatasetExamples,
    Digits,
    Dirichlet,
    FashionMNIST,
    FederatedArrays,
    FederatedDataModule,
    FederatedDataset,
    FewClassDigits,
    GeneratedClients,
    Partition,
    PartitionFile,
    Shards,
    TensorExamples,
)

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "IID",
    "MNIST",
    "ClassViews",
    "Classes",
    "ClientDatasets",
    "ColoredDigits",
    "ColoredImages",
    "DatasetExamples",
    "Digits",
    "Dirichlet",
    "FashionMNIST",
    "FederatedArrays",
    "FederatedDataModule",
    "FederatedDataset",
    "FewClassDigits",
    "GeneratedClients",
    "Partition",
    "PartitionFile",
    "Shards",
    "TensorExamples",
]
