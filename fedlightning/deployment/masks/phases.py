"""The phases of masked sums as bytes by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from fedlightning.errors import FederationError
from fedlightning.privacy.masking import Advert, Unmasking
from fedlightning.privacy.secret_shares import SHARE_BYTES

__all__ = [
    "KEYS",
    "MASK",
    "REVEAL",
    "SHARES",
    "advert_as",
    "advert_in",
    "advert_of",
    "bytes_of",
    "clients_as",
    "clients_in",
    "unmasking_as",
    "unmasking_in",
]

KEYS, SHARES, MASK, REVEAL = "masks.keys", "masks.shares", "masks.mask", "masks.reveal"
_KEY = 32
_ADVERT = "advert"


def advert_as(advert: Advert) -> dict[str, bytes]:
    """Return a client's keys as its reply.

    Example:
        >>> advert = Advert(3, b"m" * 32, b"s" * 32, b"signature")
        >>> advert_in(3, advert_as(advert)) == advert
        True
    """
    return {_ADVERT: advert.masking + advert.sealing + advert.signature}


def advert_in(client: int, reply: Mapping[str, bytes]) -> Advert:
    """Return the keys in a client's reply."""
    return advert_of(client, bytes_of(reply))


def advert_of(client: int, content: bytes) -> Advert:
    """Return the keys that some bytes are."""
    return Advert(client, content[:_KEY], content[_KEY : 2 * _KEY], content[2 * _KEY :])


def bytes_of(reply: Mapping[str, bytes]) -> bytes:
    """Return the bytes in a client's reply with its keys."""
    content = reply.get(_ADVERT, b"")
    if len(content) <= 2 * _KEY:
        raise FederationError("secure aggregation: a reply that should have keys has none.")
    return content


def clients_as(clients: Iterable[int]) -> bytes:
    """Return ids as bytes.

    Example:
        >>> clients_in(clients_as({7, 3}))
        [3, 7]
    """
    return json.dumps(sorted(clients)).encode()


def clients_in(content: bytes) -> list[int]:
    """Return the ids."""
    return [int(client) for client in json.loads(content)]


def unmasking_as(unmasking: Unmasking) -> dict[str, bytes]:
    """Return what a client reveals as its reply.

    Example:
        >>> shares = Unmasking(1, own_masks={0: 5, 1: 6}, keys={2: 7})
        >>> unmasking_in(1, unmasking_as(shares), answered=[0, 1], gone=[2]) == shares
        True
    """
    parts = {"own": unmasking.own_masks, "key": unmasking.keys}
    return {
        f"{part}/{client}": share.to_bytes(SHARE_BYTES, "big")
        for part, shares in parts.items()
        for client, share in shares.items()
    }


def unmasking_in(
    client: int, reply: Mapping[str, bytes], answered: Collection[int], gone: Collection[int]
) -> Unmasking:
    """Return what a client has revealed.

    Raises:
        FederationError: A share is missing.
    """
    own = {peer: _share(client, reply, f"own/{peer}") for peer in answered}
    return Unmasking(client, own, {peer: _share(client, reply, f"key/{peer}") for peer in gone})


def _share(client: int, reply: Mapping[str, bytes], name: str) -> int:
    if name not in reply:
        raise FederationError(f"secure aggregation: client {client} has not revealed {name}.")
    return int.from_bytes(reply[name], "big")
