"""pFedHR: new networks are made of clients' layers, and each client gets one as a teacher."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook, ServerSide
from fedlightning.algorithms.reassembly import Cut, assemble, group_layers
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.divergence import softmax_divergence
from fedlightning.core.messages import Down, Up
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.similarity import layer_distances, mean_cosine
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["PFedHR", "Teacher", "fine_tune", "reassemble"]

_NETWORK, _TEACHER = "pfedhr_network", "pfedhr_teacher"


class Teacher(ClientHook):
    """Sends a client's network, and trains with the teacher that the server has made of all.

    Args:
        strength: Weight of the divergence from the teacher.
        groups: Number of groups of layers.
        server_epochs: Passes over the public examples in each fine-tuning.
        server_lr: Learning rate of Adam in it.
        server_batch_size: Public examples in a step of it.
    """

    messages = (Up(_NETWORK, merge="keep"), Down(_TEACHER, per_client=True))
    needs_global = False
    needs_public = True

    def __init__(
        self,
        strength: float = 0.1,
        groups: int = 4,
        server_epochs: int = 3,
        server_lr: float = 1e-3,
        server_batch_size: int = 10,
    ) -> None:
        self.strength = float(check_number("algorithm.strength", strength, at_least=0))
        self.groups = check_integer("algorithm.groups", groups, at_least=1)
        self.server_epochs = check_integer("algorithm.server_epochs", server_epochs, at_least=0)
        self.server_lr = float(check_number("algorithm.server_lr", server_lr, above=0))
        size = check_integer("algorithm.server_batch_size", server_batch_size, at_least=1)
        self.server_batch_size = size

    # -- at the client -------------------------------------------------------------------------

    def on_update_start(self, context: ClientContext) -> None:
        """Rebuild the teacher, if the server has sent one."""
        module, sent = _layered(context.module), context.received_extra(_TEACHER)
        if self.strength and len(sent.get("plan", ())):
            with context.replay_rng():
                context.scratch[_TEACHER] = _rebuilt(module, sent["plan"], sent["values"])
            context.watch(f"networks.{module.present}")

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Add the divergence from the teacher."""
        if (teacher := context.scratch.get(_TEACHER)) is None:
            return loss
        logits = context.features(f"networks.{_layered(context.module).present}")
        with torch.no_grad():
            given = teacher(_examples(batch)[0])
        return loss + self.strength * softmax_divergence(logits, given)

    def on_update_end(self, context: ClientContext) -> None:
        """Send a copy of the network."""
        state = {key: context.live[key].clone() for key in context.roles.trained}
        context.send_extra(_NETWORK, state)

    # -- at the server -------------------------------------------------------------------------

    def on_aggregate(self, aggregation: Aggregation) -> State:
        """Reassemble the networks that were sent; return a teacher for each client that sent one.

        Raises:
            ConfigError: If the server has no public examples with classes.
        """
        side = aggregation.side
        if side is None:
            raise ConfigError("PFedHR needs a server that has the module and public examples.")
        module, (x, y) = _layered(side.module), _public(side)
        clients = [client for client, _ in aggregation.individual]
        networks = [_received(module, values) for _, values in aggregation.individual]
        device = x.device if x.device.type != "cpu" else None
        with torch.enable_grad(), forked_generators(side.key, device):
            plans = reassemble(networks, x, self.groups)
            candidates = [_stitched(module, networks, plan) for plan in plans]
            if not plans:
                warnings.warn(
                    f"round {side.key.round}: no network that obeys all rules can be made of the "
                    f"layers of clients {', '.join(map(str, clients))} in {self.groups} groups: "
                    "they train without a teacher. Lower algorithm.groups.",
                    stacklevel=2,
                )
            for number, network in enumerate([*candidates, *(networks if candidates else ())]):
                key = side.key.at(epoch=1 + number)
                fine_tune(network, x, y, self.server_epochs, key, self.server_lr,
                          self.server_batch_size)  # fmt: skip
        chosen = _matched(candidates, networks, x)
        teachers: State = {}
        for place, client in enumerate(clients):
            plan, values = torch.zeros(0, 2, dtype=torch.int64), x.new_zeros(0)
            if candidates:
                best = chosen[place]
                plan = torch.tensor([[module.architectures.index(module.architecture_of(
                    clients[cut.network])), cut.index] for cut in plans[best]])  # fmt: skip
                values = torch.cat([p.detach().flatten() for p in candidates[best].parameters()])
            teachers[f"{_TEACHER}/{client}/plan"] = plan.to(x.device)
            teachers[f"{_TEACHER}/{client}/values"] = values
        return teachers


class PFedHR(Algorithm):
    r"""Personalized learning with unlike networks, by reassembly of their layers.

    Clients that take part send their whole networks; the server works on copies, with public
    examples. It compares all layers by what they get and give,
    :math:`dis(i, j) = 1 / (\mathrm{CKA}(in_i, in_j) + \mathrm{CKA}(out_i, out_j))`, groups them
    (:func:`~fedlightning.algorithms.reassembly.group_layers`), makes candidates whose layers stand
    in order (R1), have convolutions before linear layers (R2), and are of all operations (R3) and
    groups (R4), and puts stitches :math:`\mathrm{ReLU}(W^\top x + b)` between them. Candidates and
    copies are fine-tuned on the public examples. The teacher of client n is the candidate whose
    logits have the largest mean cosine with those of its copy; next time n is chosen, it trains on
    :math:`\mathrm{CE} + \lambda\, \mathrm{KL}(p_n \,\|\, \hat p_n)` with the softmax of its own and
    of the teacher's logits, the teacher fixed. Clients keep their networks; one that is not chosen
    keeps its teacher as well. With :math:`\lambda = 0` it is local training.

    The module is a :class:`~fedlightning.models.LayeredNetworks`; the data has public examples with
    classes (:class:`~fedlightning.datamodules.PublicShare`). Where no candidate obeys all rules,
    clients train without a teacher, and a warning says so: a candidate has at least as many layers
    as there are groups.

    Deviations: groups have medoids for centres; algorithm 1 leaves open which of several pairs is
    added (see :func:`~fedlightning.algorithms.reassembly.assemble`); contrastive fine-tuning
    on examples without classes and the averaging within an architecture for many clients are left
    out.

    What can be said: this is pFedHR's reassembly after the paper's equations. It is not said that
    it beats local training: in small experiments it did not. Print local training, local training
    that has the public examples too, and a teacher trained on them alone beside it.

    Args:
        strength: :math:`\lambda`.
        groups: Number of groups of layers; the paper's 4 suit networks of at least as many layers.
        server_epochs: Passes over the public examples in each fine-tuning.
        server_lr: Learning rate of Adam in it.
        server_batch_size: Public examples in a step of it.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> PFedHR(groups=2).share
        'none'

    Source:
        Wang, Yang, Cui, Che, Lyu, Xu, Ma. Towards Personalized Federated Learning via Heterogeneous
        Model Reassembly. NeurIPS 2023. https://arxiv.org/abs/2308.08643
    """

    def __init__(
        self,
        strength: float = 0.1,
        groups: int = 4,
        server_epochs: int = 3,
        server_lr: float = 1e-3,
        server_batch_size: int = 10,
        **choices: Any,
    ) -> None:
        hook = Teacher(strength, groups, server_epochs, server_lr, server_batch_size)
        super().__init__(train="full", share="none", keep=True, local=[hook], **choices)


def reassemble(networks: Sequence[Any], x: Tensor, groups: int) -> list[tuple[Cut, ...]]:
    """Return which layers of some networks make candidates.

    Args:
        networks: :class:`~fedlightning.models.LayeredNetwork`.
        x: Public inputs, shape (n, ...).
        groups: Number of groups of layers.
    """
    traced = [(n, i, t) for n, net in enumerate(networks) for i, t in enumerate(net.trace(x))]
    distances = layer_distances([t.inputs for *_, t in traced], [t.outputs for *_, t in traced])
    labels = group_layers(distances, groups)
    return assemble([
        Cut(n, i, t.operation, group) for (n, i, t), group in zip(traced, labels, strict=True)
    ])  # fmt: skip


def fine_tune(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    key: Key,
    lr: float = 1e-3,
    batch_size: int = 10,
    weight_decay: float = 1e-4,
) -> None:
    """Train a network in place on examples with classes: cross-entropy, Adam.

    Args:
        network: Returns logits.
        x: Inputs, shape (n, ...).
        y: Classes, shape (n,).
        epochs: Passes over the examples.
        key: The random stream of their order.
        lr: Learning rate.
        batch_size: Examples in a step.
        weight_decay: L2 penalty.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
    generator = key.torch()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in torch.split(order, batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(x[rows]), y[rows]))
            optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _matched(candidates: list[Any], networks: list[Any], x: Tensor) -> list[int]:
    """Return each network's best candidate."""
    if not candidates:
        return []
    theirs = torch.stack([candidate(x) for candidate in candidates])
    return [int(mean_cosine(network(x), theirs).argmax()) for network in networks]


def _stitched(module: Any, networks: Sequence[Any], plan: Sequence[Cut]) -> Any:
    pieces = [
        (networks[cut.network], list(networks[cut.network].shapes)[cut.index]) for cut in plan
    ]
    return module.stitched(pieces)


@torch.no_grad()
def _rebuilt(module: Any, plan: Tensor, values: Tensor) -> Any:
    """Return the teacher that a message describes."""
    networks = [module.network(name) for name in module.architectures]
    cuts = [Cut(architecture, index, "", 0) for architecture, index in plan.tolist()]
    teacher = _stitched(module, networks, cuts).requires_grad_(False).eval()
    parameters = list(teacher.parameters())
    pieces = torch.split(values, [parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.copy_(piece.view(parameter.shape))
    return teacher


def _received(module: Any, values: Any) -> Any:
    """Return the network that a client has sent, as a copy."""
    sent = under(values, _NETWORK)
    name = module.architectures[int(sent["architecture"])]
    network = copy.deepcopy(module.network(name)).requires_grad_(True)
    start = f"networks.{name}."
    network.load_state_dict({key.removeprefix(start): v for key, v in sent.items() if "." in key})
    return network


def _layered(module: nn.Module) -> Any:
    """Return a module whose clients have networks made of layers.

    Raises:
        ConfigError: If it is another one.
    """
    if hasattr(module, "stitched") and hasattr(module, "architectures"):
        return module
    raise ConfigError(
        f"PFedHR cuts networks into layers, and {type(module).__name__} does not tell them apart; "
        "take LayeredNetworks (fedlightning.models)."
    )


def _examples(batch: Any) -> tuple[Tensor, Tensor]:
    labels = class_labels(batch, "PFedHR")
    return batch[0], labels


def _public(side: ServerSide) -> tuple[Tensor, Tensor]:
    pairs = [_examples(batch) for batch in side.public_batches()]
    x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
    return x, y
