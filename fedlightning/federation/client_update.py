"""One client's update: what a round, a worker process and a deployed client all execute.

Neither a Trainer nor a loop takes part. The update is a function of the broadcast, what the client
keeps, its data and its random stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.context import ClientContext, Trains
from fedlightning.core.messages import Broadcast, ClientUpdate, num_bytes
from fedlightning.core.state import State
from fedlightning.errors import ConfigError
from fedlightning.federation.jobs import Job
from fedlightning.federation.update_checks import BadUpdate, check_tensors, check_weight
from fedlightning.federation.uplink.stage import UplinkContext, UplinkStage

__all__ = ["Client", "LocalResult", "Training", "client_update"]


@dataclass(frozen=True)
class LocalResult:
    """What local epochs did.

    Args:
        steps: Optimizer steps taken.
        metrics: Example-weighted means of what the module logged.
    """

    steps: int
    metrics: dict[str, float]


class Client(Protocol):
    """A client where it trains: its data, and what it keeps.

    Attributes:
        kept: What it keeps, by name; replaced when an update is complete.
    """

    kept: State

    def changed(self, broadcast: Broadcast) -> Collection[str]:
        """Return the keys of frozen parameters, which are not sent, that it has changed."""

    def receive(self, job: Job, broadcast: Broadcast) -> ClientContext:
        """Load the broadcast and the kept parts into the module; freeze what is not trained."""


class Training(Trains, Protocol):
    """Local epochs on the client's data; hooks change loss and gradients."""

    def run(self, context: ClientContext, epochs: int) -> LocalResult:
        """Train the context's module for some epochs."""


def client_update(
    job: Job,
    broadcast: Broadcast,
    client: Client,
    algorithm: Algorithm,
    training: Training,
    uplink: Sequence[UplinkStage] = (),
    on_update: Callable[[ClientUpdate], None] | None = None,
) -> ClientUpdate:
    """Train a client and return what it sends to the server.

    Args:
        job: Which client, from which version.
        broadcast: What the server sent.
        client: The client; its ``kept`` is replaced once all else has succeeded.
        algorithm: What is trained, shared and kept, and the hooks that take part.
        training: Makes the local epochs.
        uplink: Stages between client and server, in order; their client halves are applied.
        on_update: Sees the update before the stages do, and may change its tensors in place.

    Returns:
        The update. Without stages its state is a view of the module's tensors.

    Raises:
        BadUpdate: If it cannot be merged: other keys, shapes or dtypes, values that are not
            finite, no weight.
    """
    context = client.receive(job, broadcast)
    context.attach(training)
    try:
        epochs = context.local_epochs
        for hook in algorithm.hooks:
            hook.on_update_start(context)
            epochs = hook.num_epochs(epochs)
        context.epochs = epochs
        result = training.run(context, epochs)
        _settle(context, result.steps)
        for hook in algorithm.hooks:
            hook.on_update_end(context)
        if algorithm.hooks:
            _check_extras(context, algorithm, result.steps)
            _settle(context, result.steps)
    finally:
        context.close()
    update = _collect(context, broadcast, result, client.changed(broadcast))
    check_weight(update.num_examples, algorithm.weight(update))
    if on_update is not None:
        on_update(update)
        shared = {key: context.live[key] for key in context.roles.shared}
        check_tensors(update.state, shared, result.steps)
    live = context.live
    kept = {key: live[key].clone() for key in context.roles.kept} | context.kept_after
    if uplink:
        link = UplinkContext.of(context, algorithm.uplinks)
        for stage in uplink:
            update = stage.send(update, link)
        kept |= link.kept_after
    if kept and algorithm.stateless:
        raise ConfigError(
            f"{algorithm.name} lets clients keep nothing, and {min(kept)} would be kept; leave out "
            "what keeps it (an algorithm, a hook, or compression with error feedback)."
        )
    client.kept = kept
    return update


def _settle(context: ClientContext, steps: int) -> None:
    """Check the module's state; have what a client has put in its place in the module's tensors."""
    check_tensors(context.held.actual_state(), context.live, steps)
    context.held.rebind()


def _check_extras(context: ClientContext, algorithm: Algorithm, steps: int) -> None:
    if (name := context.first_non_finite()) is not None:
        raise BadUpdate(
            "non_finite",
            f"{name}, which it keeps or sends along, is non-finite after {steps} steps; "
            "lower the learning rate or set trainer.gradient_clip_val.",
        )
    name = next((key for key in context.sent if algorithm.extra_of(key) is None), None)
    if name is not None:
        raise BadUpdate(
            "bad_update",
            f"it sends {name}, which {algorithm.name} does not declare: add "
            f"Up({name.partition('/')[0]!r}, merge=...) to the hook's messages",
        )


def _collect(
    context: ClientContext, broadcast: Broadcast, result: LocalResult, changed: Collection[str]
) -> ClientUpdate:
    live = context.live
    shared = {key: live[key] for key in context.roles.shared}
    size = num_bytes(shared)
    return ClientUpdate(
        context.client,
        shared,
        context.num_examples,
        result.steps,
        result.metrics,
        context.sent,
        bytes_up=size + num_bytes(context.sent),
        bytes_down=size + num_bytes(broadcast.extras),
        version=broadcast.version,
        unsent=tuple(sorted(changed)),
    )
