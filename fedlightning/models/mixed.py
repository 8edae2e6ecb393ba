"""Modules in which clients have networks of other architectures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning.core.state import State, live_state
from fedlightning.core.views import EvaluationView
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.models.base import FederatedModule
from fedlightning.models.layered import LayeredNetwork
from fedlightning.models.stitched import StitchedNetwork

__all__ = ["LayeredNetworks", "MixedModule"]

_NETWORKS, _ARCHITECTURE = "networks", "architecture"


class MixedModule(FederatedModule):
    """One network per architecture, of which each client has one; steps for classification.

    The buffer ``architecture`` says which network ``forward`` uses; a client's own model has its
    own value there, so a checkpoint, a personal file and an export are of the right one. All
    clients of an architecture start from the same weights. A client trains, keeps and loads its
    own network alone, and the others are frozen meanwhile.

    Nothing can be averaged over clients: take an algorithm that shares nothing, such as
    :class:`~fedlightning.algorithms.LocalOnly`, :class:`~fedlightning.algorithms.FedMD` or
    :class:`~fedlightning.algorithms.PFedHR`. The global model stays as it starts; what clients have
    learnt is measured by ``PersonalizationCallback(epochs=0)``. Each architecture is a view of its
    own there (``conv/personalized/acc``, ``conv_clients.csv``).

    Args:
        networks: A network per architecture, by its name: letters, digits, ``_`` and ``-``.
        assignment: The architecture of client 0, of client 1, and so on; begun again at its end.
            ``None`` means all of them in turn. For another rule override :meth:`architecture_of`.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``head``, ...

    Raises:
        ConfigError: If there is no network, or an architecture is unknown.

    Example:
        >>> module = MixedModule({"wide": nn.Linear(4, 3), "deep": nn.Sequential(
        ...     nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))})
        >>> [module.architecture_of(client) for client in range(3)]
        ['wide', 'deep', 'wide']
        >>> sorted(module.client_keys(2))
        ['architecture', 'networks.wide.bias', 'networks.wide.weight']
    """

    architecture: Tensor

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        assignment: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not networks:
            raise ConfigError(f"{type(self).__name__} needs at least one network, got none.")
        for name in networks:
            EvaluationView(name, ())  # clients are also measured by architecture, under its name
        self.networks = nn.ModuleDict(networks)
        self.architectures = tuple(networks)
        for name in assignment if assignment is not None else ():
            if name not in networks:
                raise ConfigError(
                    f"assignment: no architecture is called {name!r} (there are "
                    f"{', '.join(networks)}).{did_you_mean(str(name), self.architectures)}"
                )
        self.assignment = tuple(assignment) if assignment else self.architectures
        self.register_buffer(_ARCHITECTURE, torch.tensor(0))

    def architecture_of(self, client: int) -> str:
        """Return the name of a client's architecture."""
        return self.assignment[client % len(self.assignment)]

    @property
    def present(self) -> str:
        """The name of the architecture that the module has the values of, and uses."""
        return self.architectures[int(self.architecture)]

    def network(self, architecture: str) -> nn.Module:
        """Return the network of an architecture."""
        return self.networks[architecture]

    def forward(self, x: Any) -> Any:
        """Return what the present network returns."""
        return self.network(self.present)(x)

    def client_keys(self, client: int) -> Collection[str]:
        """Return the state-dict keys of a client's network."""
        start = f"{_NETWORKS}.{self.architecture_of(client)}."
        own = {key for key in live_state(self) if key.startswith(start)}
        return frozenset(own | {_ARCHITECTURE})

    def client_start(self, client: int) -> State:
        """Return the number of the client's architecture."""
        number = self.architectures.index(self.architecture_of(client))
        return {_ARCHITECTURE: torch.full_like(self.architecture, number)}


class LayeredNetworks(MixedModule):
    """Networks of unlike layers for 2-D images; see :class:`LayeredNetwork` for the names.

    Args:
        architectures: The layers of each architecture, by its name.
        assignment: The architecture of each client; see :class:`MixedModule`.
        in_shape: Channels, height and width of an image.
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`FederatedModule`; the head is every last linear layer.

    Raises:
        ConfigError: See :class:`MixedModule` and :class:`LayeredNetwork`.

    Example:
        >>> module = LayeredNetworks({"conv": ["conv4", "fc8"], "plain": ["fc16"]})
        >>> module.part_keys("head")
        ('networks.conv.fc2.weight', ..., 'networks.plain.fc2.bias')
    """

    def __init__(
        self,
        architectures: Mapping[str, Sequence[str]],
        assignment: Sequence[str] | None = None,
        in_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        networks = {
            name: LayeredNetwork(layers, in_shape, num_classes)
            for name, layers in architectures.items()
        }
        last = {name: list(dict(net.named_children()))[-1] for name, net in networks.items()}
        kwargs["head"] = kwargs.get("head") or [f"{_NETWORKS}.{n}.{fc}" for n, fc in last.items()]
        super().__init__(networks, assignment, **kwargs)
        self.save_hyperparameters()

    def stitched(self, pieces: Sequence[tuple[LayeredNetwork, str]]) -> StitchedNetwork:
        """Return a network of copies of layers; see :meth:`StitchedNetwork.of`."""
        return StitchedNetwork.of(pieces)
