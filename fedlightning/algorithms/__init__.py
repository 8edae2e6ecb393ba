"""Federated algorithms: few orthogonal choices, and names for the well-known combinations."""

from fedlightning.algorithms.base import Algorithm, ClientUpdate, Weights
from fedlightning.algorithms.fedavg import FedAvg
from fedlightning.algorithms.fedbabu import FedBABU

__all__ = ["Algorithm", "ClientUpdate", "FedAvg", "FedBABU", "Weights"]
