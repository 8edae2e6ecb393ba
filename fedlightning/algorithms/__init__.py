"""Federated algorithms: few orthogonal choices, and names for the well-known combinations."""

from fedlightning.algorithms.apfl import APFL, Mixture
from fedlightning.algorithms.algorithm import Algorithm, Weights
from fedlightning.algorithms.composition import Composite
from fedlightning.algorithms.ditto import Ditto, OwnModel
from fedlightning.algorithms.fedavg import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from fedlightning.algorithms.fedbabu import FedBABU
from fedlightning.algorithms.fedprox import FedProx, Proximal
from fedlightning.algorithms.fedrod import FedRoD, TwoHeads
from fedlightning.algorithms.method import LocalMethod
from fedlightning.algorithms.fedrep import (
    FedBN,
    FedPer,
    FedRep,
    HeadThenBody,
    LGFedAvg,
    LocalOnly,
)
from fedlightning.algorithms.per_fedavg import MetaGradient, PerFedAvg
from fedlightning.algorithms.pfedme import MoreauEnvelope, PFedMe
from fedlightning.algorithms.roles import ModelKeys, Roles
from fedlightning.algorithms.scaffold import SCAFFOLD, ControlVariates
from fedlightning.algorithms.server_step import (
    ServerAdagrad,
    ServerAdam,
    ServerOptimizer,
    ServerSGD,
    ServerYogi,
)
from fedlightning.algorithms.server_data import ServerData
from fedlightning.algorithms.server_training import ServerTraining
from fedlightning.core.messages import ClientUpdate

__all__ = [
    "APFL",
    "SCAFFOLD",
    "Algorithm",
    "ClientUpdate",
    "Composite",
    "ControlVariates",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRoD",
    "FedYogi",
    "HeadThenBody",
    "LGFedAvg",
    "LocalMethod",
    "LocalOnly",
    "MetaGradient",
    "Mixture",
    "ModelKeys",
    "MoreauEnvelope",
    "OwnModel",
    "PFedMe",
    "PerFedAvg",
    "Proximal",
    "Roles",
    "ServerAdagrad",
    "ServerAdam",
    "ServerData",
    "ServerOptimizer",
    "ServerSGD",
    "ServerTraining",
    "ServerYogi",
    "TwoHeads",
    "Weights",
]
