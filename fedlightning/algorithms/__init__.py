"""Federated algorithms: few orthogonal choices, and names for the well-known combinations."""

from typing import TYPE_CHECKING

from fedlightning.algorithms.algorithm import Algorithm, Composite, UpdateAccumulator, Weights
from fedlightning.algorithms.apfl import APFL, Mixture
from fedlightning.algorithms.context import ClientContext
from fedlightning.algorithms.ditto import Ditto, OwnModel
from fedlightning.algorithms.fedala import AdaptiveStart, FedALA
from fedlightning.algorithms.fedamp import AttentivePull, FedAMP
from fedlightning.algorithms.fedavg import FedAvg
from fedlightning.algorithms.fedbabu import FedBABU
from fedlightning.algorithms.fedbn import FedBN
from fedlightning.algorithms.feddf import EnsembleDistillation, FedDF
from fedlightning.algorithms.feddyn import DynamicRegularizer, FedDyn, ServerDyn
from fedlightning.algorithms.fedimpro import FedImpro, SharedFeatures
from fedlightning.algorithms.fedmd import Consensus, FedMD
from fedlightning.algorithms.fednova import FedNova, LocalProgress, NormalizedChanges
from fedlightning.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedlightning.algorithms.fedper import FedPer
from fedlightning.algorithms.fedpn import FedPN, Switch, SwitchingPredictor
from fedlightning.algorithms.fedproto import ClassPrototypes, FedProto, NearestPrototype
from fedlightning.algorithms.fedprox import FedProx, Proximal
from fedlightning.algorithms.fedrep import FedRep, HeadThenBody
from fedlightning.algorithms.fedres import FedRes, KeptOptimizer, ResidualPhases
from fedlightning.algorithms.fedrod import FedRoD, TwoHeads
from fedlightning.algorithms.fedvi import AmortizedHead, FedVI, LocalHeadPredictor
from fedlightning.algorithms.finetuning import FineTuning
from fedlightning.algorithms.ids import IterativeDataSmoothing, SmoothedLabels
from fedlightning.algorithms.ifca import IFCA, BestCluster
from fedlightning.algorithms.knn_per import KNNPer, LocalMemory, NearestNeighbours
from fedlightning.algorithms.lg_fedavg import LGFedAvg
from fedlightning.algorithms.local_only import LocalOnly
from fedlightning.algorithms.method import Aggregation, ClientHook, LocalMethod, ServerSide
from fedlightning.algorithms.moon import MOON, ModelContrast
from fedlightning.algorithms.optimizer_state import KeepsOptimizerState, PassesOptimizerStateOn
from fedlightning.algorithms.per_fedavg import MetaGradient, OneStep, PerFedAvg
from fedlightning.algorithms.perinvfl import InvariantAndPersonal, PerInvFL
from fedlightning.algorithms.persafl import PersAFL, ServerShare
from fedlightning.algorithms.pfedhr import PFedHR, Teacher
from fedlightning.algorithms.pfedme import MoreauEnvelope, PFedMe, SolvedEnvelope
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
from fedlightning.core.near_names import suggesting
from fedlightning.core.parts import KeyRoles, Parts

# names of earlier versions
ModelKeys, Roles = Parts, KeyRoles

ServerTraining = ServerTrainingConfig
"""The name of :class:`ServerTrainingConfig` in releases before 0.2."""

__all__ = [
    "APFL",
    "IFCA",
    "MOON",
    "SCAFFOLD",
    "AdaptiveStart",
    "Aggregation",
    "Algorithm",
    "AmortizedHead",
    "AttentivePull",
    "BestCluster",
    "Broadcast",
    "ClassPrototypes",
    "ClientContext",
    "ClientHook",
    "ClientUpdate",
    "Composite",
    "Consensus",
    "ControlVariates",
    "Ditto",
    "Down",
    "DynamicRegularizer",
    "EnsembleDistillation",
    "FedALA",
    "FedAMP",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedDF",
    "FedDyn",
    "FedImpro",
    "FedMD",
    "FedNova",
    "FedPN",
    "FedPer",
    "FedProto",
    "FedProx",
    "FedRep",
    "FedRes",
    "FedRoD",
    "FedVI",
    "FedYogi",
    "FineTuning",
    "HeadThenBody",
    "InvariantAndPersonal",
    "IterativeDataSmoothing",
    "KNNPer",
    "KeepsOptimizerState",
    "KeptOptimizer",
    "KeyRoles",
    "LGFedAvg",
    "LocalHeadPredictor",
    "LocalMemory",
    "LocalMethod",
    "LocalOnly",
    "LocalProgress",
    "MetaGradient",
    "Mixture",
    "ModelContrast",
    "ModelKeys",
    "MoreauEnvelope",
    "NearestNeighbours",
    "NearestPrototype",
    "NormalizedChanges",
    "OneStep",
    "OwnModel",
    "PFedHR",
    "PFedMe",
    "Parts",
    "PassesOptimizerStateOn",
    "PerFedAvg",
    "PerInvFL",
    "PersAFL",
    "Proximal",
    "ResidualPhases",
    "Roles",
    "ServerAdagrad",
    "ServerAdam",
    "ServerData",
    "ServerDyn",
    "ServerOptimizer",
    "ServerSGD",
    "ServerShare",
    "ServerSide",
    "ServerTraining",
    "ServerTrainingConfig",
    "ServerYogi",
    "SharedFeatures",
    "SmoothedLabels",
    "SolvedEnvelope",
    "Switch",
    "SwitchingPredictor",
    "Teacher",
    "TwoHeads",
    "Up",
    "UpdateAccumulator",
    "Weights",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
