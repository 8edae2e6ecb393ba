"""The server: updates are pushed into it, and the next global model comes out.

One round is ``broadcast`` per job, ``receive`` per update, ``aggregate``, ``commit``. What the
server remembers changes with ``commit`` alone, so that a round that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.aggregation.base import Aggregator
from fedlightning.algorithms.aggregation.mean import Mean
from fedlightning.algorithms.aggregation.secure_sum import SecureSum, integers_of
from fedlightning.algorithms.algorithm import Algorithm, UpdateAccumulator, WeightedUpdates
from fedlightning.algorithms.method import Aggregation, ClientHook, ServerSide
from fedlightning.core.messages import Broadcast, ClientUpdate, Up, belongs_to
from fedlightning.core.state import State, as_complex, as_real, first_non_finite
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.extras import ExtrasAccumulator
from fedlightning.federation.jobs import Job
from fedlightning.federation.uplink.stage import UplinkStage
from fedlightning.privacy.mechanism import ClientMechanism, PrivateRound

__all__ = ["Server", "check_robust", "summands_of"]

_OPTIMIZER = "optimizer/"
_PRIVACY = "privacy/"
_OURS = (_OPTIMIZER, _PRIVACY)
_EXTRA = "extra:"


@dataclass(frozen=True)
class _Version:
    """A model that updates under way have started from.

    Args:
        model: The global model.
        state: The server's state beside it.
    """

    model: Mapping[str, Tensor]
    state: State


class Server:
    """Merges a round's updates, with the server's optimizer and the hooks' server sides.

    Args:
        algorithm: How updates are merged.
        num_training_clients: The number of clients that take part in training.
        aggregator: What merges updates, if not the algorithm's mean.
        uplink: The stages whose server halves updates pass, in the order of the client.
        side: Returns what hooks find at the server beside messages, for a commit's number.
        staleness_weight: Returns the share of a stale update's change that counts.
        sequential: Whether the model goes from client to client, one update a commit: integers,
            which have no mean, are then the client's.
        mechanism: What merges updates so that none of them can be made out, and keeps the ledger.

    Example:
        >>> from fedlightning.algorithms import FedAvg
        >>> server = Server(FedAvg(), num_training_clients=2)
        >>> server.start({"w": torch.zeros(1)}, shared=["w"], parameters=["w"], trained=["w"])
        >>> for client, value in enumerate((1.0, 4.0)):
        ...     server.receive(ClientUpdate(client, {"w": torch.tensor([value])}, client + 1))
        >>> server.aggregate()
        {'w': tensor([3.])}
        >>> server.commit()
    """

    def __init__(
        self,
        algorithm: Algorithm,
        num_training_clients: int,
        aggregator: Aggregator | None = None,
        uplink: Sequence[UplinkStage] = (),
        side: Callable[[int], ServerSide] | None = None,
        staleness_weight: Callable[[int], float] = lambda staleness: 1.0,
        sequential: bool = False,
        mechanism: ClientMechanism | None = None,
    ) -> None:
        self._mechanism = mechanism
        self._moving: tuple[str, ...] = ()
        self._sent_extras: State = {}
        self._algorithm = algorithm
        self._sequential = sequential
        self._side = side
        self._staleness_weight = staleness_weight
        self._rule = aggregator if aggregator is not None else Mean()
        self._uplink = tuple(uplink)
        self._num_training_clients = num_training_clients
        check_robust(self._rule, algorithm.hooks)
        self.version = 0
        self._model: Mapping[str, Tensor] = {}
        self._shared: tuple[str, ...] = ()
        self._parameters: tuple[str, ...] = ()
        self._state: State = {}
        self._next: State = {}
        self._loaded: State = {}
        self._owned: dict[ClientHook, frozenset[str]] = {}
        self._older: dict[int, _Version] = {}
        self._broadcast: Broadcast | None = None
        self._round: _Round | PrivateRound | None = None

    def start(
        self,
        model: Mapping[str, Tensor],
        shared: Iterable[str],
        parameters: Iterable[str],
        trained: Iterable[str],
        version: int = 0,
    ) -> None:
        """Prepare the first round, or continue from a state that was loaded.

        Args:
            model: The global model. The server reads it and never writes it: the caller copies the
                result of :meth:`aggregate` into it, after :meth:`commit`.
            shared: Its keys that clients share.
            parameters: Those of them that are parameters (not buffers), and further ones that did
                not change and are not sent.
            trained: Those of them that move.
            version: The model's version.
        """
        self.version, self._model = version, model
        self._shared, self._parameters = tuple(shared), tuple(parameters)
        self._moving = tuple(trained)
        state: State = {}
        if self._mechanism is not None:
            state |= {_PRIVACY + name: value for name, value in self._mechanism.start().items()}
        if self._algorithm.server is not None:
            steps = {key: model[key] for key in self._parameters}
            start = self._algorithm.server.start(as_real(steps))
            state |= {_OPTIMIZER + name: value for name, value in start.items()}
        moving = {key: model[key] for key in self._moving}
        self._sent_extras = {}
        for hook in self._algorithm.hooks:
            own = _entries(hook, "server_state", hook.server_state(moving))
            declared = {message.name for message in hook.messages}
            for message in hook.messages:
                if getattr(message, "per_client", False) and message.name in own:
                    raise ConfigError(
                        f"{type(hook).__name__}.server_state has {message.name!r}, which is "
                        f"declared per client; name its entries '{message.name}/CLIENT'."
                    )
            if self._mechanism is not None:
                self._sent_extras |= _known_extras(hook, own)
            self._owned[hook] = frozenset({_first(name) for name in own} | declared)
            state |= own
        device = next((value.device for value in model.values()), None)
        hooks_own = frozenset().union(*self._owned.values()) if self._owned else frozenset()
        if self._mechanism is not None:
            hooks_own |= {_first(_PRIVACY)}
        later = {n: v for n, v in self._loaded.items() if n not in state and _first(n) in hooks_own}
        self._state = {
            name: self._loaded[name].to(value.device if name.startswith(_PRIVACY) else device)
            if name in self._loaded
            else value
            for name, value in {**state, **later}.items()
        }
        self._broadcast = self._round = None

    @property
    def broadcast_extras(self) -> State:
        """What the hooks' server sides remember; clients get what of it their hooks declare."""
        return {k: value for k, value in self._state.items() if not k.startswith(_OURS)}

    @property
    def private_state(self) -> State:
        """The mechanism's part of what is remembered."""
        return {
            name.removeprefix(_PRIVACY): value
            for name, value in self._state.items()
            if name.startswith(_PRIVACY)
        }

    def share(self, keys: Iterable[str]) -> None:
        """Share these keys from now on; before the first update of a round.

        Raises:
            ConfigError: If these are others than before, and updates are merged privately.
        """
        shared = tuple(keys)
        if self._mechanism is not None and (other := set(shared).difference(self._shared)):
            raise ConfigError(
                f"federation.privacy: {min(other)} is shared from this round on, and what is "
                "shared must be known beforehand; freeze or train the same parameters throughout."
            )
        self._shared = shared

    # -- a round -------------------------------------------------------------------------------

    def broadcast(self, job: Job) -> Broadcast:
        """Return what a client receives for a job: the model of its version, and extras.

        Raises:
            FederationError: If the version is not there any more.
        """
        if job.version == self.version:
            model, state = self._model, self._state
        elif job.version in self._older:
            older = self._older[job.version]
            model, state = older.model, older.state
        else:
            raise FederationError(
                f"client {job.client}: version {job.version} of the global model is gone; the "
                "schedule must list the update in its state's `pending` until it is merged."
            )
        known = self._broadcast
        if known is not None and known.version == job.version and not self._per_client:
            return known
        extras: State = {}
        for hook in self._algorithm.hooks:
            extras |= hook.broadcast(self._own(hook, state), job.client)
        if self._mechanism is not None:
            extras |= self._mechanism.broadcast(self.private_state)
        self._broadcast = Broadcast(job.version, model, extras)
        return self._broadcast

    def receive(self, update: ClientUpdate) -> None:
        """Take an update in; its tensors may be overwritten afterwards."""
        if update.elsewhere:
            now = {key: self._model[key] for key in self._shared}
            if self._round is None:
                self._round = _Round(self._algorithm, self._rule, now, self._parameters, update)
            assert isinstance(self._round, _Round), "private sums are made where all updates are"
            self._round.note(update)
            return
        received = self._received(update.version)
        for stage in reversed(self._uplink):
            update = stage.receive(update, received, self._parameters)
        staleness = self.version - update.version
        if staleness:
            share = self._staleness_weight(staleness)
            update = replace(update, state=self._rebased(update.state, received, share))
        now = {key: self._model[key] for key in self._shared}
        update = replace(update, received=now, staleness=staleness)
        if self._round is None:
            self._round = self._open_private() or _Round(
                self._algorithm, self._rule, now, self._parameters, update
            )
            if self._sequential and isinstance(self._round, _Round):
                self._round.take_integers(update)
        self._round.push(update)

    def why_not_apart(self, staleness: bool = False) -> str | None:
        """Return why all processes need all updates, or ``None`` if each can add its own.

        Args:
            staleness: Whether updates may have started from older models.
        """
        for says, holds in (
            ('sums are not "exact"', self._algorithm.sums != "exact"),
            (f"{self._rule.name} compares them", not isinstance(self._rule, Mean)),
            (
                "some tensors are complex",
                any(self._model[key].is_complex() for key in self._shared),
            ),
        ):
            if holds:
                return says
        return self.why_not_summed(staleness)

    def why_not_summed(self, staleness: bool = False) -> str | None:
        """Return why a sum of the updates is not enough, or ``None`` if it is.

        Args:
            staleness: Whether updates may have started from older models.
        """
        algorithm, hooks = self._algorithm, self._algorithm.hooks
        merges = {message.merge for message in algorithm.uplinks}
        for says, holds in (
            ("the algorithm merges by a rule of its own", not self._merges_by_weights),
            ("a method looks at each of them", any(hook.needs_states for hook in hooks)),
            ("extras are not means", not merges <= {"mean", "weighted_mean"}),
            ("they may be stale", staleness or self._sequential),
            ("their sum is private", self._mechanism is not None),
            ("some tensors are bool", any(
                self._model[key].dtype is torch.bool for key in self._shared
            )),
        ):  # fmt: skip
            if holds:
                return says
        return None

    @property
    def _merges_by_weights(self) -> bool:
        algorithm = self._algorithm
        return not algorithm.merges_at_once and isinstance(
            algorithm.accumulator(Mean().start({}, ())), WeightedUpdates
        )

    def combine(
        self, gather: Callable[[Any], Sequence[Any]], add_up: Callable[[Tensor], None]
    ) -> None:
        """Add what other processes have received; all of them must call it.

        Args:
            gather: Returns every process's value of something small.
            add_up: Replaces a tensor by its sum over all processes.
        """
        if isinstance(self._round, _Round):
            device = next((value.device for value in self._model.values()), None)
            self._round.combine(gather, add_up, device)

    def aggregate(self) -> State:
        """Return the next values of the shared part; :meth:`commit` makes them count.

        Raises:
            FederationError: If the rule needs more updates, or a value is not finite.
        """
        received, self._round = self._round or self._open_private(), None
        self._next = dict(self._state)
        if received is None:
            return {}
        merged, extras = received.result()
        if isinstance(received, PrivateRound):
            self._next |= {_PRIVACY + name: value for name, value in received.after.items()}
        for hook in self._algorithm.hooks:
            aggregation = Aggregation(
                self._own(hook, self._state),
                self._own(hook, extras.merged),
                [(client, self._own(hook, values)) for client, values in extras.individual],
                received.count,
                self._num_training_clients,
                {key: self._model[key] for key in self._shared},
                merged,
                self.version,
                self._side(self.version) if self._side is not None else None,
                received.states if hook.needs_states else (),
            )
            self._next |= _entries(hook, "on_aggregate", hook.on_aggregate(aggregation))
            merged = {**merged, **_entries(hook, "on_merge", hook.on_merge(aggregation))}
        shared = frozenset(self._shared)
        private = isinstance(received, PrivateRound)
        still = {
            key: self._model[key]
            for key in self._parameters
            if key not in shared or (private and key not in merged)
        }  # frozen
        moved = self._step({**merged, **still}, received.count)
        if (bad := first_non_finite(moved)) is not None:
            raise FederationError(
                f"{bad} of the global model is non-finite after the step of "
                f"{self._algorithm.server!r}; lower its learning rate."
            )
        return {**merged, **moved}

    def commit(self, pending: Collection[int] = ()) -> None:
        """Let what the last aggregation remembered count; the next version begins.

        Args:
            pending: The versions that updates under way have started from. Their models are
                copied and kept, all others are forgotten.
        """
        if self.version in pending:
            model = {key: value.clone() for key, value in self._model.items()}
            self._older[self.version] = _Version(model, self._state)
        self._older = {v: older for v, older in self._older.items() if v in pending}
        self._state = self._next
        self._broadcast = None
        self.version += 1

    def forget_round(self) -> None:
        """Drop the updates of a round that failed."""
        self._round = None

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return what is remembered beside the models."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave; before :meth:`start`."""
        self._loaded = dict(state)

    def versions(self) -> dict[int, dict[str, Any]]:
        """Return the older models that updates under way have started from, by version."""
        return {
            version: {"model": dict(older.model), "state": dict(older.state)}
            for version, older in self._older.items()
        }

    def load_versions(self, versions: Mapping[int, Mapping[str, Any]]) -> None:
        """Take back what :meth:`versions` gave; after :meth:`start`."""
        device = next((value.device for value in self._model.values()), None)

        def there(values: Mapping[str, Tensor]) -> State:
            return {key: value.to(device) for key, value in values.items()}

        self._older = {
            int(version): _Version(there(older["model"]), there(older["state"]))
            for version, older in versions.items()
        }

    # -- small print ---------------------------------------------------------------------------

    @property
    def _per_client(self) -> bool:
        hooks = self._algorithm.hooks
        return any(getattr(m, "per_client", False) for hook in hooks for m in hook.messages)

    def _open_private(self) -> PrivateRound | None:
        """Return the accumulators of a private round; without any update they hold its noise."""
        if self._mechanism is None:
            return None
        received = {key: self._model[key] for key in self._shared}
        moving = [key for key in self._moving if key in received]
        return self._mechanism.open(
            self.private_state, received, moving, self._sent_extras, self.version
        )

    def _own(self, hook: ClientHook, state: Mapping[str, Tensor]) -> State:
        """Return a hook's entries of the server's state, or of extras."""
        if len(self._owned) == 1 or not self._owned[hook]:
            return {k: v for k, v in state.items() if not k.startswith(_OURS)}
        return {k: value for k, value in state.items() if _first(k) in self._owned[hook]}

    def _received(self, version: int) -> Mapping[str, Tensor]:
        older = self._older.get(version)
        return self._model if older is None else older.model

    def _rebased(
        self, state: Mapping[str, Tensor], received: Mapping[str, Tensor], share: float
    ) -> State:
        """Return the newest model, moved by a share of what a stale update has changed.

        Buffers move towards the client's own: variances of BatchNorm that are moved by a difference
        may become negative.
        """
        rebased: State = {}
        parameters = frozenset(self._parameters)
        for key, value in state.items():
            if not (value.is_floating_point() or value.is_complex()):
                rebased[key] = value
            elif key in parameters:
                rebased[key] = self._model[key] + (value - received[key]) * share
            else:
                rebased[key] = torch.lerp(self._model[key], value, share)
        return rebased

    def _step(self, merged: State, clients: int) -> State:
        """Return the parameters after the server optimizer's step."""
        optimizer = self._algorithm.server
        keys = [key for key in self._parameters if key in merged]
        if optimizer is None or not keys:
            return {}
        before = {
            k.removeprefix(_OPTIMIZER): v
            for k, v in self._state.items()
            if k.startswith(_OPTIMIZER)
        }
        model = {key: self._model[key] for key in keys}
        moved, after = optimizer.move(
            as_real(model), as_real(merged), before, clients, self._num_training_clients
        )
        self._next |= {_OPTIMIZER + name: value for name, value in after.items()}
        return as_complex(moved, model)


class _Round:
    """The accumulators of one round."""

    def __init__(
        self,
        algorithm: Algorithm,
        rule: Aggregator,
        received: State,
        parameters: Sequence[str],
        first: ClientUpdate,
    ) -> None:
        self._joined = _joined(first) if rule.robust else {}
        reference = _joined_reference(received, self._joined)
        parameters = [*parameters, *self._joined]  # the rule sees the whole message, as one vector
        self._like = reference
        # rules see complex numbers as pairs
        merge = rule.start({**reference, **as_real(reference)}, parameters, algorithm.sums)
        self._states: UpdateAccumulator = (
            _AllAtOnce(algorithm, rule, merge)
            if algorithm.merges_at_once
            else algorithm.accumulator(merge)
        )
        self._extras = ExtrasAccumulator(algorithm)
        self._robust = rule.robust
        self._flags: State = {
            key: value.clone() for key, value in first.state.items() if value.dtype is torch.bool
        }
        self._hold = any(hook.needs_states for hook in algorithm.hooks)
        self.states: list[State] = []
        self.count = 0

    def take_integers(self, update: ClientUpdate) -> None:
        for key, value in update.state.items():
            if not (value.is_floating_point() or value.is_complex()):
                self._flags[key] = value.clone()

    def push(self, update: ClientUpdate) -> None:
        if self._hold:
            self.states.append({key: value.clone() for key, value in update.state.items()})
        if self._robust:
            update = replace(update, state={**update.state, **_joined(update)})
        else:
            self._extras.push(update)
        for key in [k for k, flag in self._flags.items() if not torch.equal(flag, update.state[k])]:
            del self._flags[key]
        self._states.push(update)
        self.count += 1

    def note(self, update: ClientUpdate) -> None:
        """Hear of an update that another process takes in."""
        assert isinstance(self._states, WeightedUpdates)
        self._states.note(update)
        if not self._robust:
            self._extras.note(update)
        self.count += 1

    def combine(self, *exchange: Any) -> None:
        assert isinstance(self._states, WeightedUpdates)
        self._states.combine(*exchange)
        if not self._robust:
            self._extras.combine(*exchange)

    def result(self) -> tuple[State, ExtrasAccumulator]:
        merged = as_complex(self._states.result(), self._like)
        if self._joined:
            self._extras.merged = {
                key.removeprefix(_EXTRA): value
                for key, value in merged.items()
                if key.startswith(_EXTRA)
            }
            merged = {key: value for key, value in merged.items() if not key.startswith(_EXTRA)}
        else:
            self._extras.finish()
        return {**merged, **self._flags}, self._extras  # a flag counts if all clients agree


class _AllAtOnce:
    """Keeps a round's updates for an algorithm that overrides ``aggregate``."""

    def __init__(self, algorithm: Algorithm, rule: Aggregator, merge: Any) -> None:
        self._algorithm = algorithm
        self._merge = None if isinstance(rule, Mean) else merge
        self._updates: list[ClientUpdate] = []

    def push(self, update: ClientUpdate) -> None:
        state = {key: value.clone() for key, value in update.state.items()}
        self._updates.append(replace(update, state=state))

    def result(self) -> State:
        if self._merge is None:
            return self._algorithm.aggregate(self._updates)
        return self._algorithm.aggregate(self._updates, self._merge)


def check_robust(rule: Aggregator, hooks: Sequence[ClientHook]) -> None:
    """Refuse extras that a robust rule cannot protect.

    Raises:
        ConfigError: If one is not a mean; the message names it.
    """
    if not rule.robust:
        return
    for hook in hooks:
        if hook.needs_states:
            raise ConfigError(
                f"federation.aggregator: {rule.name} cannot protect {type(hook).__name__}, which "
                "looks at every client's update; leave the aggregator out."
            )
        for message in hook.messages:
            merge = getattr(message, "merge", "mean")
            if merge not in ("mean", "weighted_mean"):
                raise ConfigError(
                    f"federation.aggregator: {rule.name} cannot protect {message.name!r} of "
                    f"{type(hook).__name__}, whose values merge by {merge!r}; leave the aggregator "
                    "out."
                )


def _known_extras(hook: ClientHook, own: Mapping[str, Tensor]) -> State:
    """Return tensors like the extras that a hook's clients send, which noise must be made for.

    Raises:
        ConfigError: If the server's state does not tell their shapes.
    """
    known: State = {}
    for message in hook.messages:
        if not isinstance(message, Up):
            continue
        like = {key: value for key, value in own.items() if belongs_to(key, message.name)}
        if not like:
            raise ConfigError(
                f"federation.privacy: {type(hook).__name__} sends {message.name!r}, and the server "
                "does not know its shape before a client has sent it, so a round without clients "
                f"would show; have server_state return entries under {message.name!r}, or leave "
                "privacy out."
            )
        known |= like
    return known


def _joined(update: ClientUpdate) -> State:
    for key, value in update.extras.items():
        if not (value.is_floating_point() or value.is_complex()):
            raise FederationError(
                f"federation.aggregator: client {update.client} sends {key!r} as {value.dtype}, "
                "which a robust rule cannot protect; leave the aggregator out."
            )
    return {_EXTRA + key: value for key, value in update.extras.items()}


def _joined_reference(received: Mapping[str, Tensor], joined: Mapping[str, Tensor]) -> State:
    return {**received, **{key: torch.zeros_like(value) for key, value in joined.items()}}


def summands_of(
    update: ClientUpdate, received: Mapping[str, Tensor], rule: SecureSum
) -> dict[str, np.ndarray]:
    """Return the integers that an update adds to the server's sum, by key.

    Args:
        update: The update, after the client halves of the stages.
        received: The shared part of the model as the client received it.
        rule: The settings of the sum.
    """
    joined = _joined(update)
    reference = _joined_reference({key: received[key] for key in update.state}, joined)
    return integers_of({**update.state, **joined}, as_real(reference), rule)


def _entries(hook: ClientHook, method: str, values: Any) -> State:
    """Return what a hook's server side gave.

    Raises:
        ConfigError: If it is not a dict of tensors.
    """
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ConfigError(
            f"{type(hook).__name__}.{method} must return a dict of tensors, got {values!r:.80}."
        )
    return values


def _first(name: str) -> str:
    return name.partition("/")[0]
