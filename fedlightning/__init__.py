"""Federated learning as a PyTorch Lightning plugin.

Names are imported when they are first used, so that ``import fedlightning`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedlightning._version import __version__

if TYPE_CHECKING:
    from fedlightning.algorithms import (
        APFL,
        SCAFFOLD,
        Algorithm,
        ClientUpdate,
        Composite,
        Ditto,
        FedAdagrad,
        FedAdam,
        FedAvg,
        FedAvgM,
        FedBABU,
        FedBN,
        FedPer,
        FedProx,
        FedRep,
        FedRoD,
        FedYogi,
        LGFedAvg,
        LocalMethod,
        LocalOnly,
        PerFedAvg,
        PFedMe,
        ServerData,
    )
    from fedlightning.callbacks import PersonalizationCallback
    from fedlightning.datamodules import FederatedDataModule
    from fedlightning.engine.loop import FederatedLoop
    from fedlightning.errors import FedLightningError
    from fedlightning.federation.settings import Federation
    from fedlightning.models.base import FederatedModule
    from fedlightning.storage.checkpoint_io import AtomicCheckpointIO
    from fedlightning.trainer import FederatedTrainer

_HOMES = {
    "APFL": "algorithms",
    "Algorithm": "algorithms",
    "AtomicCheckpointIO": "storage.checkpoint_io",
    "ClientUpdate": "algorithms",
    "Composite": "algorithms",
    "Ditto": "algorithms",
    "FedAdagrad": "algorithms",
    "FedAdam": "algorithms",
    "FedAvg": "algorithms",
    "FedAvgM": "algorithms",
    "FedBABU": "algorithms",
    "FedBN": "algorithms",
    "FedLightningError": "errors",
    "FedPer": "algorithms",
    "FedProx": "algorithms",
    "FedRep": "algorithms",
    "FedRoD": "algorithms",
    "FedYogi": "algorithms",
    "FederatedDataModule": "datamodules",
    "FederatedLoop": "engine.loop",
    "FederatedModule": "models.base",
    "FederatedTrainer": "trainer",
    "Federation": "federation",
    "LGFedAvg": "algorithms",
    "LocalMethod": "algorithms",
    "LocalOnly": "algorithms",
    "PFedMe": "algorithms",
    "PerFedAvg": "algorithms",
    "PersonalizationCallback": "callbacks",
    "SCAFFOLD": "algorithms",
    "ServerData": "algorithms",
}

__all__ = [
    "APFL",
    "SCAFFOLD",
    "Algorithm",
    "AtomicCheckpointIO",
    "ClientUpdate",
    "Composite",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBABU",
    "FedBN",
    "FedLightningError",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedRoD",
    "FedYogi",
    "FederatedDataModule",
    "FederatedLoop",
    "FederatedModule",
    "FederatedTrainer",
    "Federation",
    "LGFedAvg",
    "LocalMethod",
    "LocalOnly",
    "PFedMe",
    "PerFedAvg",
    "PersonalizationCallback",
    "ServerData",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedlightning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedlightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
