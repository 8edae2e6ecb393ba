"""Several algorithms in one: the choices of all of them, as far as they go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from fedlightning.algorithms.method import ClientHook
from fedlightning.core.parts import names_in, split_subtractions, without
from fedlightning.errors import ConfigError

__all__ = ["Member", "deciding", "joined"]


class Member(Protocol):
    """An algorithm, as far as composition goes: a name, the choices that it makes, its methods."""

    claims: dict[str, Any]
    local: tuple[ClientHook, ...]

    @property
    def name(self) -> str:
        """The name to show."""


M = TypeVar("M", bound=Member)


def joined(members: Sequence[Member]) -> dict[str, Any]:
    """Return the choices of all members.

    Raises:
        ConfigError: If two of them choose differently, or two methods want the same for themselves.
    """
    claims: dict[str, Any] = {}
    owners: dict[str, str] = {}
    local: list[Any] = []
    removed: list[str] = []
    for member in members:
        for key, value in member.claims.items():
            if key == "local":
                local += value
                continue
            if key == "share":
                value, less = split_subtractions(value)
                removed += less
                if less and value == "full":
                    continue  # it takes a part from what the others share
            if key in claims and claims[key] != value:
                raise ConfigError(
                    f"{owners[key]} and {member.name} do not go together: "
                    f"{key} is {claims[key]!r} for the one and {value!r} for the other."
                )
            claims[key], owners[key] = value, owners.get(key, member.name)
    if removed:
        shared = claims.get("share", "full")
        if set(names_in(shared)) <= set(removed):
            names = " and ".join(member.name for member in members)
            raise ConfigError(
                f"{names} do not go together: {shared!r} is shared by the one and left to the "
                "clients by the other."
            )
        claims["share"] = without(shared, *removed)
    _refuse_clashes(members)
    return {**claims, "local": local or None}


def _refuse_clashes(members: Sequence[Member]) -> None:
    """Refuse two methods of which each wants the same for itself."""
    methods = [(member.name, method) for member in members for method in member.local]
    for at, (owner, method) in enumerate(methods):
        for other_owner, other in methods[at + 1 :]:
            names = f"{owner} and {other_owner}" if owner != other_owner else f"two of {owner}"
            if reason := method.clash(other) or other.clash(method):
                raise ConfigError(f"{names} do not go together: {reason}.")


def deciding(members: Sequence[M], method: str, default: object) -> M | None:
    """Return the one member that has its own version of a method, if any has.

    Args:
        members: The algorithms.
        method: Name of the method.
        default: The method of :class:`~fedlightning.algorithms.Algorithm` itself.

    Raises:
        ConfigError: If two of them have one.
    """
    owners = [member for member in members if getattr(type(member), method) is not default]
    if len(owners) > 1:
        names = " and ".join(owner.name for owner in owners)
        raise ConfigError(f"{names} do not go together: each has its own {method}().")
    return owners[0] if owners else None
