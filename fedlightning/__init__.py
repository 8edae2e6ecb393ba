"""Federated learning as a PyTorch Lightning plugin.

Names are imported when they are first used, so that ``import fedlightning`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedlightning._version import __version__

if TYPE_CHECKING:
    from fedlightning.algorithms import Algorithm, ClientUpdate, FedAvg, FedBABU
    from fedlightning.callbacks import PersonalizationCallback
    from fedlightning.checkpoints import AtomicCheckpointIO
    from fedlightning.datamodules import FederatedDataModule
    from fedlightning.errors import FedLightningError
    from fedlightning.federation import Federation
    from fedlightning.loop import FederatedLoop
    from fedlightning.module import FederatedModule
    from fedlightning.trainer import FederatedTrainer

_HOMES = {
    "Algorithm": "algorithms",
    "AtomicCheckpointIO": "checkpoints",
    "ClientUpdate": "algorithms",
    "FedAvg": "algorithms",
    "FedBABU": "algorithms",
    "FedLightningError": "errors",
    "FederatedDataModule": "datamodules",
    "FederatedLoop": "loop",
    "FederatedModule": "module",
    "FederatedTrainer": "trainer",
    "Federation": "federation",
    "PersonalizationCallback": "callbacks",
}

__all__ = [
    "Algorithm",
    "AtomicCheckpointIO",
    "ClientUpdate",
    "FedAvg",
    "FedBABU",
    "FedLightningError",
    "FederatedDataModule",
    "FederatedLoop",
    "FederatedModule",
    "FederatedTrainer",
    "Federation",
    "PersonalizationCallback",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedlightning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedlightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
