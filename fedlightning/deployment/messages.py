"""What a server asks of a client's node, and what the node answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from fedlightning.core.batches import Split
from fedlightning.core.metrics import LogFlags
from fedlightning.core.state import State
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentFailure,
    FederationError,
)
from fedlightning.federation.failures import ClientFailure
from fedlightning.federation.jobs import Job
from fedlightning.personalization.results import PersonalResult

__all__ = [
    "Answer",
    "Hyperparameters",
    "Nodes",
    "Order",
    "Passport",
    "Phase",
    "Receipt",
    "TrainOrder",
    "common_digest",
    "digest_of",
    "raise_error",
]

Hyperparameters = Sequence[Sequence[Mapping[str, Any]]]
"""Plain values of every group of every optimizer: learning rates and the like."""


@dataclass(frozen=True)
class Receipt:
    """Which state of a client is part of the global model's history.

    Args:
        run: A random number, drawn when the run began.
        stream: The number of the client's update that was merged last
            (:attr:`~fedlightning.federation.jobs.Job.stream`).
    """

    run: int
    stream: int


@dataclass(frozen=True)
class TrainOrder:
    """One client update to be made.

    Args:
        job: Which update.
        round: The round that it is for.
        updates: Updates that the server has received before the round.
        extras: What the algorithm's hooks send along, by name.
        hyperparameters: Those of the optimizers, which schedules at the server may have changed.
        planned_steps: How many steps the client's optimizers live for, where that matters.
        run: A random number, drawn when the run began.
        after: The update whose kept state the client starts from; ``None`` if it keeps nothing.
        durable: The update that the server falls back to if it is killed now.
    """

    job: Job
    round: int
    updates: int
    extras: State
    hyperparameters: Hyperparameters
    planned_steps: int | None
    run: int
    after: int | None
    durable: int | None


@dataclass(frozen=True)
class Phase:
    """A step of what nodes settle with each other, through the server, around a commit's training.

    Args:
        name: Which step.
        session: Names what is settled; another commit is another session.
        content: What it takes, as bytes by name (:mod:`fedlightning.deployment.exchange`).
    """

    name: str
    session: str
    content: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """One message to one client: measure the model that comes with it, then train, or personalize.

    Args:
        client: Client id.
        round: The round under way, which names random streams of evaluation.
        state: The shared part of the global model, and what else of it has changed.
        commits: How many commits the global model has behind it.
        measure: The splits of the client to evaluate the model on.
        per_class: Whether accuracies are also measured class by class.
        train: The update to make, if any.
        personalize: The place of the callback, among those of its kind, that personalizes; ``None``
            if none does.
        kept: The client's state that personalization starts from, if it has one.
        phase: What else to do: with an order to train, what happens to the update; alone, a step
            before or after it.
    """

    client: int
    round: int
    state: State
    commits: int = 0
    measure: tuple[Split, ...] = ()
    per_class: bool = False
    train: TrainOrder | None = None
    personalize: int | None = None
    kept: Receipt | None = None
    phase: Phase | None = None


@dataclass(frozen=True)
class Answer:
    """What a node answers.

    Args:
        client: Client id.
        scores: What the module logs on each split that was to be measured.
        flags: Where that is logged, by name.
        trained: The update; its ``kept`` is empty, since that stays where it is.
        keeps: Whether the client keeps anything after the update.
        failure: Why there is no update.
        personal: The client before and after personalization.
        error: A mistake in settings, or trouble of the node's: kind and text. It ends the run.
        reply: The answer to a phase, as bytes by name.
    """

    client: int
    scores: Mapping[Split, Mapping[str, float]] = field(default_factory=dict)
    flags: Mapping[str, LogFlags] = field(default_factory=dict)
    trained: Trained | None = None
    keeps: bool = False
    failure: ClientFailure | None = None
    personal: PersonalResult | None = None
    error: tuple[str, str] | None = None
    reply: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Passport:
    """What a node says of itself before the first round.

    Args:
        client: Client id.
        versions: Versions of what a result's bits depend on, by package.
        settings: Digest of the settings.
        model: Digest of the untrained model.
        schema: What its examples look like: shapes, dtypes, number of classes.
        sizes: Number of its examples, by split.
    """

    client: int
    versions: Mapping[str, str]
    settings: str
    model: str
    schema: str
    sizes: Mapping[Split, int]


class Nodes(Protocol):
    """Carries orders to clients' nodes, and answers back."""

    def ask(self, orders: Sequence[Order]) -> list[Answer]:
        """Return the answers to orders for different clients, in the same order.

        A client that cannot be reached has an answer, too: a failure by ``timeout``.
        """


_APART = ("job", "extras", "durable")  # the last only says which old files may go


def digest_of(order: Order) -> str:
    """Return a SHA-256 of what decides about the update that an order asks for.

    Example:
        >>> one = Order(3, 0, {"w": torch.ones(2)})
        >>> digest_of(one) == digest_of(Order(3, 0, {"w": torch.ones(2)}, measure=("test",)))
        True
        >>> digest_of(one) == digest_of(Order(3, 0, {"w": torch.zeros(2)}))
        False
    """
    content, train = hashlib.sha256(), order.train
    plain = train and {k: v for k, v in vars(train).items() if k not in _APART}
    job = train and asdict(train.job)
    content.update(json.dumps([order.client, job, plain], sort_keys=True, default=repr).encode())
    content.update(common_digest(order))
    return content.hexdigest()


def common_digest(order: Order) -> bytes:
    """Return a SHA-256 of what all clients of a round are sent alike.

    These are the model, extras, and what optimizers are set to.

    Example:
        >>> common_digest(Order(3, 0, {"w": torch.ones(2)})) == common_digest(
        ...     Order(4, 0, {"w": torch.ones(2)}))
        True
    """
    train = order.train
    settings = train.hyperparameters if train is not None else ()
    content = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    for state in (order.state, train.extras if train is not None else {}):
        for key in sorted(state):
            value = state[key].detach().cpu()
            dense = value.to_dense() if value.layout != torch.strided else value
            content.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            content.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.digest()


def raise_error(answer: Answer) -> None:
    """Raise what ends the run at a node, here as well.

    Raises:
        FedLightningError: Of the kind that the node has raised; it names the client.
    """
    if answer.error is None:
        return
    kind, text = answer.error
    kinds = (ConfigError, DataError, CheckpointError, EnvironmentFailure)
    raised = next((known for known in kinds if known.__name__ == kind), FederationError)
    raise raised(f"client {answer.client}, at its node: {text}")
