"""A secret in shares: a threshold of them gives it back, fewer tell nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from fedlightning.errors import FederationError

__all__ = ["SHARE_BYTES", "reconstructed", "shares_of"]

_PRIME = 2**521 - 1
SHARE_BYTES = 66
"""How many bytes a share takes."""


def shares_of(secret: int, clients: Sequence[int], threshold: int) -> dict[int, int]:
    """Return a share of a secret for each client; a threshold of them gives it back, fewer nothing.

    Source:
        Shamir. How to Share a Secret. Communications of the ACM, 1979.

    Example:
        >>> shares = shares_of(42, [0, 1, 2, 3], threshold=3)
        >>> reconstructed({client: shares[client] for client in (3, 0, 2)}, threshold=3)
        42
    """
    coefficients = [secret, *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]

    def at(x: int) -> int:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % _PRIME
        return value

    return {client: at(client + 1) for client in clients}


def reconstructed(shares: Mapping[int, int], threshold: int) -> int:
    """Return the secret that shares belong to.

    Raises:
        FederationError: If there are fewer than the threshold.
    """
    if len(shares) < threshold:
        raise FederationError(f"secure aggregation: {len(shares)} shares of {threshold} needed.")
    points = [(client + 1, share) for client, share in sorted(shares.items())[:threshold]]
    secret = 0
    for x, y in points:
        above = below = 1
        for other, _ in points:
            if other != x:
                above = above * other % _PRIME
                below = below * (other - x) % _PRIME
        secret = (secret + y * above * pow(below, -1, _PRIME)) % _PRIME
    return secret
