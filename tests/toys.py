"""Tiny modules, data and trainers that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
from fedlightning.algorithms import Algorithm
from fedlightning.datamodules import ClientDatasets
from fedlightning.engine.loop import FederatedLoop
from fedlightning.storage.checkpoint_reader import loop_state
from fedlightning.storage.client_store import ClientStore

FEATURES, CLASSES = 4, 3


class Net(FederatedModule):
    """Body and head of two small linear layers; dropout and BatchNorm on request."""

    def __init__(self, dropout: float = 0.0, norm: bool = False, **kwargs: Any) -> None:
        super().__init__(**{"lr": 0.1, **kwargs})
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Linear(FEATURES, 5)]
        if norm:
            layers.append(nn.BatchNorm1d(5))
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(5, CLASSES)


def net(seed: int = 0, module: type[Any] = Net, **kwargs: Any) -> Any:
    """Return a module with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(**kwargs)


def examples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n separable examples: the class is the largest of the first three features."""
    x = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :CLASSES].argmax(dim=1)


def data(sizes: tuple[int, ...] = (8, 6, 7, 5), **kwargs: Any) -> ClientDatasets:
    """Return clients with so many examples each, and four to test on."""
    return ClientDatasets(
        train=[examples(n, seed) for seed, n in enumerate(sizes)],
        test=[examples(4, 100 + seed) for seed in range(len(sizes))],
        num_classes=CLASSES,
        **{"batch_size": 4, **kwargs},
    )


def trainer(
    algorithm: Algorithm | None = None,
    rounds: int = 2,
    cohort: float | int = 1.0,
    folder: Path | None = None,
    federation: dict[str, Any] | None = None,
    **kwargs: Any,
) -> FederatedTrainer:
    """Return a silent trainer; it writes files only where a folder is given."""
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    if folder is None:
        quiet |= {"logger": False, "enable_checkpointing": False}
    else:
        quiet |= {"default_root_dir": folder}
    return FederatedTrainer(
        federation=Federation(
            algorithm=algorithm or FedAvg(), cohort_size=cohort, **(federation or {})
        ),
        max_epochs=rounds,
        **{**quiet, **kwargs},
    )


def fit(module: Any, *args: Any, datamodule: Any = None, ckpt: Any = None, **kwargs: Any) -> Any:
    """Fit a module on the toy clients and return the trainer."""
    built = trainer(*args, **kwargs)
    built.fit(module, datamodule=datamodule or data(), ckpt_path=ckpt)
    return built


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def client_states(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return all that clients keep in a checkpoint, by client and key."""
    store = ClientStore()
    store.load_state_dict(loop_state(checkpoint)["extra"]["personal"])
    return {f"{client}/{key}": v for client in store for key, v in store.get(client).items()}


def loop_of(built: FederatedTrainer) -> FederatedLoop:
    """Return a trainer's loop."""
    return built.federated_loop


def sgd_by_hand(
    module: FederatedModule, batches: list[tuple[Tensor, Tensor]], lr: float, momentum: float = 0.9
) -> None:
    """Train as the textbook says: the reference that the loop is compared with."""
    buffers = {key: torch.zeros_like(p) for key, p in module.named_parameters()}
    for x, y in batches:
        module.zero_grad()
        F.cross_entropy(module(x), y).backward()
        with torch.no_grad():
            for key, p in module.named_parameters():
                if p.grad is not None:
                    buffers[key].mul_(momentum).add_(p.grad)
                    p.add_(buffers[key], alpha=-lr)
