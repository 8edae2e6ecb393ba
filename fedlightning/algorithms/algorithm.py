"""An algorithm: what clients train, what they share, how the server merges it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, get_args

from fedlightning.algorithms.aggregation import Accumulator, WeightedMean
from fedlightning.algorithms.aggregation.secure_sum import IntegerSum
from fedlightning.algorithms.composition import deciding, joined
from fedlightning.algorithms.method import ClientHook, LocalMethod
from fedlightning.algorithms.server_step import ServerOptimizer, ServerTrainingConfig
from fedlightning.core.arguments import NamedArguments
from fedlightning.core.messages import ClientUpdate, Up, declared
from fedlightning.core.parts import (
    RESERVED,
    KeyRoles,
    Parts,
    canonical,
    names_in,
    needs_names,
    split_subtractions,
    without,
)
from fedlightning.core.state import State, Sums
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["Algorithm", "Composite", "UpdateAccumulator", "WeightedUpdates", "Weights"]

Weights = Literal["uniform", "examples"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "weights": get_args(Weights),
    "keep": (True, False),
    "sums": get_args(Sums),
}


class UpdateAccumulator(Protocol):
    """One round's merging of updates: they go in, in order, and the next shared part comes out."""

    def push(self, update: ClientUpdate) -> None:
        """Take one update in; its tensors may be overwritten afterwards."""

    def result(self) -> State:
        """Return the next values; keys that are left out keep their old ones."""


class WeightedUpdates:
    """Merges the updates' states, each with its weight.

    Args:
        weight: Returns an update's weight.
        rule: What merges states.
    """

    def __init__(self, weight: Callable[[ClientUpdate], float], rule: Accumulator) -> None:
        self._weight = weight
        self._rule = rule

    def push(self, update: ClientUpdate) -> None:
        """Take one update in."""
        self._rule.push(update.state, self._weight(update))

    def note(self, update: ClientUpdate) -> None:
        """Hear of an update that another process takes in; its tensors are not here."""
        assert isinstance(self._rule, (WeightedMean, IntegerSum))
        self._rule.note(self._weight(update))

    def combine(self, *exchange: Any) -> None:
        """Add what other processes have taken in (see :meth:`WeightedMean.combine`)."""
        assert isinstance(self._rule, (WeightedMean, IntegerSum))
        self._rule.combine(*exchange)

    def result(self) -> State:
        """Return what the rule makes of the states."""
        return self._rule.result()


class Algorithm(NamedArguments):
    """Federated learning as a few choices that are independent of each other.

    Each round the cohort's clients start from the global model, train the part ``train`` and send
    back the part ``share``; the server averages what it gets. What a client trains and does not
    share it keeps for the next time it is chosen, unless ``keep`` is false. Local methods take part
    in a client's turn; a server optimizer makes the mean a step.

    A choice that is left out (``None``) is FedAvg's, and free to be made by another algorithm:
    ``FedBABU() + FedProx(mu=0.1)`` has the choices of both, and is refused where they contradict
    each other.

    Args:
        train: The parts that move during local training, such as ``body`` or ``adapter + head``;
            the rest is frozen.
        share: The parts that are averaged, such as ``full - norm``, or ``none``.
        weights: Weights of the mean: ``uniform``, or in proportion to the clients' ``examples``.
        keep: Whether clients keep what they train and do not share.
        sums: Precision in which the server adds (see
            :class:`fedlightning.algorithms.aggregation.WeightedMean`).
        own_norms: The former way to say ``share="full - norm"``: true removes ``norm`` from what is
            shared.
        local: What takes part in a client's turn.
        server: What makes the clients' mean the next global model; ``None`` takes the mean itself.
        server_data: How the server trains on data of its own, if it has any.

    Raises:
        ConfigError: If a value is not one of the choices.

    Example:
        >>> Algorithm(train="body", share="body", weights="uniform")
        Algorithm(train='body', share='body', weights='uniform')
        >>> Algorithm().train, Algorithm().weights, Algorithm().keep
        ('full', 'examples', True)
    """

    def __init__(
        self,
        train: str | None = None,
        share: str | None = None,
        weights: Weights | None = None,
        keep: bool | None = None,
        sums: Sums | None = None,
        own_norms: bool | None = None,
        local: list[ClientHook] | None = None,
        server: ServerOptimizer | None = None,
        server_data: ServerTrainingConfig | None = None,
    ) -> None:
        if not isinstance(local, (list, tuple, type(None))):
            raise ConfigError(f"algorithm.local must be a list of ClientHook, got {local!r}.")
        train = canonical(train, "algorithm.train") if train is not None else None
        share = canonical(share, "algorithm.share") if share is not None else None
        share = without(share or "full", "norm") if own_norms else share
        given = {
            "train": train, "share": share, "weights": weights, "keep": keep, "sums": sums,
            "local": tuple(local or ()) or None, "server": server, "server_data": server_data,
        }  # fmt: skip
        self.claims: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        for key, choices in _CHOICES.items():
            value = self.claims.get(key, choices[0])
            if value not in choices:
                raise ConfigError(
                    f"algorithm.{key} must be one of {', '.join(map(str, choices))}, "
                    f"got {value!r}.{did_you_mean(str(value), [str(c) for c in choices])}"
                )
        self._check_methods()
        self.train = train or "full"
        self.share = share or "full"
        self.weights: Weights = weights or "examples"
        self.keep = keep is not False
        self.sums: Sums = sums or "float64"
        self.local: tuple[ClientHook, ...] = self.claims.get("local", ())
        self.server = server
        self.server_data = server_data
        self._check_server()
        self._check_stateless()

    def __repr__(self) -> str:
        own = {k: v for k, v in vars(self).items() if k not in _FIELDS and not k.startswith("_")}
        settings = ", ".join(f"{key}={value!r}" for key, value in {**own, **self.claims}.items())
        return f"{type(self).__name__}({settings})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __add__(self, other: Algorithm) -> Algorithm:
        """Return the algorithm with the choices of both.

        Raises:
            ConfigError: If they contradict each other.
        """
        return Composite([self, other])

    @property
    def name(self) -> str:
        """The name to show."""
        return type(self).__name__

    @property
    def own_norms(self) -> bool:
        """Whether ``share`` ends in ``- norm``; an earlier version's name for that."""
        return "norm" in split_subtractions(self.share)[1]

    @property
    def needs_parts(self) -> bool:
        """Whether the module must tell parts apart, by its head or by other names."""
        return any(map(needs_names, self._expressions)) or self.needs_head

    @property
    def needs_head(self) -> bool:
        """Whether a local method works on the head."""
        return any(method.needs_head for method in self.local)

    @property
    def server_part(self) -> str | None:
        """What the server trains on data of its own; ``None`` if it has none.

        What is removed from the shared part is trained, too, as clients do, and then left out.
        """
        if self.server_data is None or self.share == "none":
            return None
        default = split_subtractions(self.share)[0] if self.train == "full" else self.train
        return self.server_data.part or default

    @property
    def stateless(self) -> bool:
        """Whether clients may keep nothing."""
        return any(hook.stateless for hook in self.local)

    @property
    def personal(self) -> bool:
        """Whether clients that trained have models of their own, beside the global one."""
        return self.keeps_parts or any(method.personal_model for method in self.local)

    @property
    def keeps_parts(self) -> bool:
        """Whether clients keep parts of the model, so that none of them has the global one."""
        return self.keep and self._trains_more_than_it_shares

    @property
    def shares_all(self) -> bool:
        """Whether clients send all that they train, and have no models of their own."""
        personal = any(method.personal_model for method in self.local)
        return not (self._trains_more_than_it_shares or personal)

    @property
    def _trains_more_than_it_shares(self) -> bool:
        outline = self._outline()
        return not set(outline.keys(self.train)) <= set(outline.keys(self.share))

    def roles(self, keys: Parts) -> KeyRoles:
        """Return which of a model's keys are trained, shared and kept.

        Args:
            keys: The model's keys by part.

        Raises:
            ConfigError: If the model does not have a part that ``train`` or ``share`` names.
        """
        return KeyRoles.of(keys, self.train, self.share, self.keep)

    def weight(self, update: ClientUpdate) -> float:
        """Return an update's weight in the mean."""
        return 1.0 if self.weights == "uniform" else float(update.num_examples)

    @property
    def hooks(self) -> tuple[ClientHook, ...]:
        """What takes part in a client update; hooks that see bare gradients come first."""
        return tuple(sorted(self.local, key=lambda hook: not hook.first))

    @property
    def uplinks(self) -> tuple[Up, ...]:
        """The extras that clients send, as its hooks declare them."""
        return tuple(m for hook in self.local for m in hook.messages if isinstance(m, Up))

    def extra_of(self, key: str) -> Up | None:
        """Return the declaration of an extra, by the key of one of its tensors."""
        found = declared(key, self.uplinks)
        if found is None and any(isinstance(hook, LocalMethod) for hook in self.local):
            return Up(key.partition("/")[0])
        return found

    def accumulator(self, rule: Accumulator) -> UpdateAccumulator:
        """Return what merges a round's updates into the next values of the shared part.

        Override it for a rule of the algorithm's own.

        Args:
            rule: What merges states (``federation.aggregator``), the weighted mean by default.
        """
        return WeightedUpdates(self.weight, rule)

    @property
    def merges_at_once(self) -> bool:
        """Whether it overrides :meth:`aggregate`, which needs all updates of a round at once."""
        return type(self).aggregate is not Algorithm.aggregate

    def aggregate(self, updates: Iterable[ClientUpdate], merge: Accumulator | None = None) -> State:
        """Merge updates into the next values of the shared part.

        To merge by another rule, override :meth:`accumulator`. A subclass of releases before 0.2
        that overrides this method gets all updates of a round at once.

        Args:
            updates: One per client, in the order of aggregation.
            merge: What merges states; the weighted mean by default.

        Returns:
            The new values; keys that are left out keep their old ones.
        """
        accumulator = self.accumulator(merge if merge is not None else WeightedMean(self.sums))
        for update in updates:
            accumulator.push(update)
        return accumulator.result()

    def _check_methods(self) -> None:
        for key, kind in (
            ("local", ClientHook),
            ("server", ServerOptimizer),
            ("server_data", ServerTrainingConfig),
        ):
            value = self.claims.get(key)
            for item in value if isinstance(value, tuple) else [value] if value else []:
                if not isinstance(item, kind):
                    raise ConfigError(f"algorithm.{key} must be a {kind.__name__}, got {item!r}.")
        owners: dict[tuple[str, type], str] = {}
        for hook in self.claims.get("local", ()):
            for message in hook.messages:
                place, name = (message.name, type(message)), type(hook).__name__
                if place in owners:
                    raise ConfigError(
                        f"algorithm.local: {owners[place]} and {name} both have a message "
                        f"{message.name!r}; give one of them another name."
                    )
                owners[place] = name

    @property
    def _expressions(self) -> list[str]:
        return [part for part in (self.train, self.share, self.server_part) if part is not None]

    def _outline(self) -> Parts:
        """Return the parts of a small model that has each part that is named, none within another.

        On it the choices can be compared before there is a module.
        """
        named = {"head", *(name for part in self._expressions for name in names_in(part))}
        names = sorted(named.difference(RESERVED))
        keys = {name: (f"{name}.linear", f"{name}.norm") for name in ("body", *names)}
        norm = tuple(key for _, key in keys.values())
        return Parts(sum(keys.values(), ()), {name: keys[name] for name in names}, norm)

    def _check_server(self) -> None:
        """Refuse what acts on what is shared, where nothing is."""
        if (part := self.server_part) is not None:
            base, outline = split_subtractions(self.share)[0], self._outline()
            common = set(outline.keys(self.train)).intersection(outline.keys(base))
            if not common.issuperset(outline.keys(part)):
                raise ConfigError(
                    f"algorithm.part: the server cannot train part {part!r} where clients train "
                    f"{self.train!r} and share {self.share!r}."
                )
        if self.share != "none":
            return
        for item in (self.server, self.server_data, *self.local):
            if item is not None and getattr(item, "needs_global", True):
                raise ConfigError(
                    f"{type(item).__name__} needs a global model, and with share='none' there is "
                    "none."
                )

    def _check_stateless(self) -> None:
        """Refuse to leave parts to the clients, where nothing may be kept."""
        hook = next((hook for hook in self.local if hook.stateless), None)
        if hook is not None and self.personal:
            raise ConfigError(
                f"{type(hook).__name__} lets clients keep nothing, and with share={self.share!r} "
                "they would keep what they train and do not share."
            )


CHOSEN = ("train", "share", *_CHOICES, "local", "server", "server_data")
"""The names of an algorithm's choices."""

_FIELDS = {*CHOSEN, "claims"}


class Composite(Algorithm):
    """An algorithm with the choices of several others; ``a + b`` in Python.

    Choices that one of them makes and the others leave open are taken over; local methods are
    joined. What two of them choose differently is refused. A member's own ``roles``,
    ``weight`` or ``aggregate`` decides for all of them, with the choices of all of them.

    Args:
        algorithms: Two or more algorithms.

    Raises:
        ConfigError: If they contradict each other; the message says in what.

    Example:
        >>> from fedlightning.algorithms import FedBABU, FedProx, FedPer
        >>> both = FedBABU() + FedProx(mu=0.1)
        >>> both.name, both.train, both.local
        ('FedBABU + FedProx', 'body', (Proximal(mu=0.1),))
        >>> FedBABU() + FedPer()
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: FedBABU and FedPer do not go together: train is 'body' ...
    """

    def __init__(self, algorithms: list[Algorithm]) -> None:
        members = _flat(algorithms)
        if len(members) < 2:
            raise ConfigError(
                f"federation.algorithm: Composite needs two or more algorithms, got {len(members)}."
            )
        choices = joined(members)
        try:
            super().__init__(**choices)
        except ConfigError as error:
            names = " and ".join(member.name for member in members)
            raise ConfigError(f"{names} do not go together: {error}") from None
        self.algorithms = tuple(members)
        self._deciding = {
            method: deciding(members, method, getattr(Algorithm, method))
            for method in ("accumulator", "aggregate", "weight", "roles")
        }

    @property
    def name(self) -> str:
        """The name to show."""
        return " + ".join(algorithm.name for algorithm in self.algorithms)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.algorithms))

    def roles(self, keys: Parts) -> KeyRoles:
        """Return which keys are trained, shared and kept; by a member's own rule, if one has it."""
        owner = self._deciding["roles"]
        return super().roles(keys) if owner is None else self._for_all(owner).roles(keys)

    def weight(self, update: ClientUpdate) -> float:
        """Return an update's weight in the mean; a member's own rule, if one has it."""
        owner = self._deciding["weight"]
        return super().weight(update) if owner is None else self._for_all(owner).weight(update)

    def accumulator(self, rule: Accumulator) -> UpdateAccumulator:
        """Return what merges updates; by a member's own rule, if one has it."""
        owner = self._deciding["accumulator"]
        return (
            super().accumulator(rule) if owner is None else self._merging(owner).accumulator(rule)
        )

    def aggregate(self, updates: Iterable[ClientUpdate], merge: Accumulator | None = None) -> State:
        """Merge updates; by a member's own rule, if one has it."""
        owner = self._deciding["aggregate"]
        if owner is None:
            return super().aggregate(updates, merge)
        owner = self._merging(owner)
        return owner.aggregate(updates) if merge is None else owner.aggregate(updates, merge)

    @property
    def merges_at_once(self) -> bool:
        """Whether a member overrides ``aggregate``."""
        return self._deciding["aggregate"] is not None

    def _merging(self, member: Algorithm) -> Algorithm:
        """Return a member that merges for all, with the weights of all."""
        member = self._for_all(member)
        vars(member)["weight"] = self.weight
        return member

    def _for_all(self, member: Algorithm) -> Algorithm:
        """Return a member with the choices of all: what it asks itself is asked of all of them."""
        member = copy.copy(member)
        vars(member).update({name: vars(self)[name] for name in CHOSEN})
        return member


def _flat(algorithms: Sequence[Any]) -> list[Algorithm]:
    members: list[Algorithm] = []
    for algorithm in algorithms:
        if not isinstance(algorithm, Algorithm):
            raise ConfigError(
                f"federation.algorithm: Composite takes algorithms, got {algorithm!r}."
            )
        members += algorithm.algorithms if isinstance(algorithm, Composite) else [algorithm]
    return members
