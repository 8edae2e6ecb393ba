"""Federated learning as a PyTorch Lightning plugin.

Names are imported when they are first used, so that ``import fedlightning`` is quick. Type checkers
read ``__init__.pyi`` instead.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fedlightning._version import __version__ as __version__

_NAMES = {
    "algorithms": (
        "APFL IFCA MOON SCAFFOLD Algorithm ClientHook ClientUpdate Composite Ditto FedALA FedAMP "
        "FedAdagrad FedAdam FedAvg FedAvgM FedBABU FedBN FedDF FedDyn FedImpro FedMD FedNova FedPN "
        "FedPer FedProto FedProx FedRep FedRes FedRoD FedVI FedYogi IterativeDataSmoothing KNNPer "
        "LGFedAvg LocalMethod LocalOnly PFedHR PFedMe PerFedAvg PerInvFL PersAFL ServerData"
    ),
    "callbacks": "ClientInfluence PersonalizationCallback",
    "datamodules": "FederatedDataModule",
    "engine.loop": "FederatedLoop",
    "errors": "FedLightningError",
    "federation": "Buffered Cyclic Federation Synchronous",
    "federation.sampling": "PoissonSampler SeparatedSampler",
    "models.base": "FederatedModule",
    "privacy": "AdaptiveClipping ClientDP ExampleDP PrivateHead PrivateSGD",
    "results": "Run Study",
    "storage.checkpoint_io": "AtomicCheckpointIO",
    "trainer": "FederatedTrainer",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from fedlightning.core.near_names import missing_name

        raise missing_name("fedlightning", name, __all__, sys._getframe(1))
    return getattr(importlib.import_module(f"fedlightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
