"""The clients' data: data modules, partitions, and the vision sets."""

from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.classes import Classes
from fedlightning.datamodules.dataset_examples import DatasetExamples
from fedlightning.datamodules.dirichlet import Dirichlet
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.partition import IID, Assignment, Partition
from fedlightning.datamodules.partition_file import PartitionFile
from fedlightning.datamodules.shards import Shards
from fedlightning.datamodules.tasks import Batch, ClientLoader, ClientTask, Split
