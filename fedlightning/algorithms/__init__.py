"""Federated algorithms: few orthogonal choices, and names for the well-known combinations."""

from fedlightning.algorithms.algorithm import Algorithm, Composite, UpdateAccumulator, Weights
from fedlightning.algorithms.apfl import APFL, Mixture
from fedlightning.algorithms.context import ClientContext
from fedlightning.algorithms.ditto import Ditto, OwnModel
from fedlightning.algorithms.fedavg import FedAvg
from fedlightning.algorithms.fedbabu import FedBABU
from fedlightning.algorithms.fedbn import FedBN
from fedlightning.algorithms.fedmd import Consensus, FedMD
from fedlightning.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedlightning.algorithms.fedper import FedPer
from fedlightning.algorithms.fedprox import FedProx, Proximal
from fedlightning.algorithms.fedrep import FedRep, HeadThenBody
from fedlightning.algorithms.fedres import FedRes, KeptOptimizer, ResidualPhases
from fedlightning.algorithms.fedrod import FedRoD, TwoHeads
from fedlightning.algorithms.fedvi import AmortizedHead, FedVI, LocalHeadPredictor
from fedlightning.algorithms.ids import IterativeDataSmoothing, SmoothedLabels
from fedlightning.algorithms.lg_fedavg import LGFedAvg
from fedlightning.algorithms.local_only import LocalOnly
from fedlightning.algorithms.method import Aggregation, ClientHook, LocalMethod, ServerSide
from fedlightning.algorithms.per_fedavg import MetaGradient, PerFedAvg
from fedlightning.algorithms.pfedhr import PFedHR, Teacher
from fedlightning.algorithms.pfedme import MoreauEnvelope, PFedMe
from fedlightning.algorithms.scaffold import SCAFFOLD, ControlVariates
from fedlightning.algorithms.server_data import ServerData
from fedlightning.algorithms.server_step import (
    ServerAdagrad,
    ServerAdam,
    ServerOptimizer,
    ServerSGD,
    ServerTrainingConfig,
    ServerYogi,
)
from fedlightning.core.messages import Broadcast, ClientUpdate, Down, Up
from fedlightning.core.parts import KeyRoles, Parts

# names of earlier versions
ModelKeys, Roles = Parts, KeyRoles

ServerTraining = ServerTrainingConfig
"""The name of :class:`ServerTrainingConfig` in releases before 0.2."""

__all__ = [
    "APFL",
    "SCAFFOLD",
    "Aggregation",
    "Algorithm",
    "AmortizedHead",
    "Broadcast",
    "ClientContext",
    "ClientHook",
    "ClientUpdate",
    "Composite",
    "Consensus",
    "ControlVariates",
    "Ditto",
    "Down",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedMD",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRes",
    "FedRoD",
    "FedVI",
    "FedYogi",
    "HeadThenBody",
    "IterativeDataSmoothing",
    "KeptOptimizer",
    "KeyRoles",
    "LGFedAvg",
    "LocalHeadPredictor",
    "LocalMethod",
    "LocalOnly",
    "MetaGradient",
    "Mixture",
    "ModelKeys",
    "MoreauEnvelope",
    "OwnModel",
    "PFedHR",
    "PFedMe",
    "Parts",
    "PerFedAvg",
    "Proximal",
    "ResidualPhases",
    "Roles",
    "ServerAdagrad",
    "ServerAdam",
    "ServerData",
    "ServerOptimizer",
    "ServerSGD",
    "ServerSide",
    "ServerTraining",
    "ServerTrainingConfig",
    "ServerYogi",
    "SmoothedLabels",
    "Teacher",
    "TwoHeads",
    "Up",
    "UpdateAccumulator",
    "Weights",
]
