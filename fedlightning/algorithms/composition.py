"""Several algorithms in one: the choices of all of them, as far as they go together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from fedlightning.algorithms.aggregation import Merge
from fedlightning.algorithms.algorithm import CHOSEN, Algorithm
from fedlightning.algorithms.roles import ModelKeys, Roles
from fedlightning.core.messages import ClientUpdate
from fedlightning.errors import ConfigError
from fedlightning.core.parts import State

__all__ = ["Composite"]


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
        choices = _joined(members)
        try:
            super().__init__(**choices)
        except ConfigError as error:
            names = " and ".join(member.name for member in members)
            raise ConfigError(f"{names} do not go together: {error}") from None
        self.algorithms = tuple(members)
        self._deciding = {
            method: _deciding(members, method) for method in ("aggregate", "weight", "roles")
        }

    @property
    def name(self) -> str:
        """The name to show."""
        return " + ".join(algorithm.name for algorithm in self.algorithms)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.algorithms))

    def roles(self, keys: ModelKeys) -> Roles:
        """Return which keys are trained, shared and kept; by a member's own rule, if one has it."""
        owner = self._deciding["roles"]
        return super().roles(keys) if owner is None else self._for_all(owner).roles(keys)

    def weight(self, update: ClientUpdate) -> float:
        """Return an update's weight in the mean; a member's own rule, if one has it."""
        owner = self._deciding["weight"]
        return super().weight(update) if owner is None else self._for_all(owner).weight(update)

    def aggregate(self, updates: Iterable[ClientUpdate], merge: Merge | None = None) -> State:
        """Merge a cohort's updates; by a member's own rule, if one has it."""
        owner = self._deciding["aggregate"]
        if owner is None:
            return super().aggregate(updates, merge)
        owner = self._for_all(owner)
        vars(owner)["weight"] = self.weight
        return owner.aggregate(updates) if merge is None else owner.aggregate(updates, merge)

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


def _joined(members: Sequence[Algorithm]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    owners: dict[str, str] = {}
    local: list[Any] = []
    for member in members:
        for key, value in member.claims.items():
            if key == "local":
                local += value
            elif key in claims and claims[key] != value:
                raise ConfigError(
                    f"{owners[key]} and {member.name} do not go together: "
                    f"{key} is {claims[key]!r} for the one and {value!r} for the other."
                )
            else:
                claims[key], owners[key] = value, owners.get(key, member.name)
    _refuse_clashes(members)
    return {**claims, "local": local or None}


def _refuse_clashes(members: Sequence[Algorithm]) -> None:
    """Refuse two methods of which each wants the same for itself."""
    methods = [(member.name, method) for member in members for method in member.local]
    for at, (owner, method) in enumerate(methods):
        for other_owner, other in methods[at + 1 :]:
            names = f"{owner} and {other_owner}" if owner != other_owner else f"two of {owner}"
            if reason := method.clash(other) or other.clash(method):
                raise ConfigError(f"{names} do not go together: {reason}.")


def _deciding(members: Sequence[Algorithm], method: str) -> Algorithm | None:
    owners = [m for m in members if getattr(type(m), method) is not getattr(Algorithm, method)]
    if len(owners) > 1:
        names = " and ".join(owner.name for owner in owners)
        raise ConfigError(f"{names} do not go together: each has its own {method}().")
    return owners[0] if owners else None
