"""Secure aggregation in one process: clients mask their integers so that only the sum can be read.

The protocol of Bonawitz et al. in five steps, as messages between :class:`MaskingClient` and
:class:`MaskingServer`; whatever carries messages can carry it. Every pair of clients agrees on a
mask, which one adds and the other subtracts, and each adds one of its own. Shares of the secrets
behind the masks lie with the other clients, so a threshold of them can undo the masks of those who
drop out.

Against a server that follows the protocol this hides everything but the sum. Against one that does
not, two things are checked by the clients: that keys are signed by the identities which they know
beforehand, so that nobody stands between two clients, and that nobody is called both present and
gone, which would reveal one client's masks as a whole.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlightning.core.validation import check_integer
from fedlightning.errors import EnvironmentFailure, FederationError

__all__ = ["Advert", "MaskingClient", "MaskingServer", "Unmasking", "reconstructed", "shares_of"]

Numbers = npt.NDArray[np.uint64]
_PRIME = 2**521 - 1
_BYTES = 66


@dataclass(frozen=True)
class Advert:
    """A client's keys of one round.

    Args:
        client: Client id.
        masking: The public key that masks follow from.
        sealing: The public key under which shares are sent.
        signature: Of both, the round and the client, by the client's identity.
    """

    client: int
    masking: bytes
    sealing: bytes
    signature: bytes


@dataclass(frozen=True)
class Unmasking:
    """What a client reveals at the end: shares of others' secrets.

    Args:
        client: Who reveals them.
        own_masks: For each client that has answered, a share of what its own mask follows from.
        keys: For each client that is gone, a share of its masking key.
    """

    client: int
    own_masks: Mapping[int, int]
    keys: Mapping[int, int]


class MaskingClient:
    """A client in one round.

    Args:
        client: Client id.
        round_id: Names the round in signatures, so that old keys cannot be played back.
        identity: The client's signing key (Ed25519).
        known: The public identities of all clients, known beforehand.
        threshold: How many clients must be left, more than half of those that begin.
        bits: 32 or 64, the size of the integers.

    Raises:
        EnvironmentFailure: If the package cryptography is missing.

    Source:
        Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth. Practical Secure
        Aggregation for Privacy-Preserving Machine Learning. CCS 2017.
        https://doi.org/10.1145/3133956.3133982
    """

    def __init__(
        self,
        client: int,
        round_id: bytes,
        identity: Any,
        known: Mapping[int, Any],
        threshold: int,
        bits: int = 32,
    ) -> None:
        keys = _cryptography("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        self.client = client
        self._round, self._identity, self._known = round_id, identity, dict(known)
        self._threshold = check_integer("threshold", threshold, at_least=2)
        self._bits = bits
        self._masking, self._sealing = keys.generate(), keys.generate()
        self._own = os.urandom(32)
        self._peers: dict[int, Advert] = {}
        self._held: dict[int, tuple[int, int]] = {}
        self._senders: frozenset[int] = frozenset()
        self._revealed = False

    def advertise(self) -> Advert:
        """Return the client's keys, signed."""
        masking, sealing = (
            key.public_key().public_bytes_raw() for key in (self._masking, self._sealing)
        )
        signature = self._identity.sign(_signed(self._round, self.client, masking, sealing))
        return Advert(self.client, masking, sealing, signature)

    def share(self, adverts: Sequence[Advert]) -> dict[int, bytes]:
        """Return, for each other client, sealed shares of this client's secrets.

        Raises:
            FederationError: If too few clients are there, one is there twice, or a key is not
                signed by the identity that this client knows.
        """
        self._peers = {advert.client: advert for advert in adverts}
        if len(self._peers) != len(adverts) or self.client not in self._peers:
            raise FederationError("secure aggregation: each client must be there once, I included.")
        if not len(adverts) / 2 < self._threshold <= len(adverts):
            raise FederationError(
                f"secure aggregation: a threshold of {self._threshold} among {len(adverts)} "
                "clients is not more than half of them, or more than there are."
            )
        for advert in adverts:
            self._verify(advert)
        secret = int.from_bytes(self._masking.private_bytes_raw(), "big")
        ids = sorted(self._peers)
        keys = shares_of(secret, ids, self._threshold)
        own = shares_of(int.from_bytes(self._own, "big"), ids, self._threshold)
        sealed = {}
        for peer in ids:
            if peer == self.client:
                self._held[peer] = keys[peer], own[peer]
                continue
            text = keys[peer].to_bytes(_BYTES, "big") + own[peer].to_bytes(_BYTES, "big")
            nonce = os.urandom(12)
            sealed[peer] = nonce + self._box(peer).encrypt(nonce, text, self._label(peer))
        return sealed

    def mask(self, numbers: Numbers, sealed: Mapping[int, bytes]) -> Numbers:
        """Return masked integers, after taking in what others have sealed for this client.

        Args:
            numbers: uint64, below ``2 ** bits``.
            sealed: For each client that has sealed its shares, those for this one.

        Raises:
            FederationError: If too few clients have, or what one has sealed was changed.
        """
        exceptions = _cryptography("exceptions")
        for peer, text in sealed.items():
            label = self._round + f"/{peer}/{self.client}".encode()
            try:
                opened = self._box(peer).decrypt(text[:12], text[12:], label)
            except exceptions.InvalidTag as error:
                raise FederationError(
                    f"secure aggregation: shares of client {peer} were changed on the way."
                ) from error
            parts = opened[:_BYTES], opened[_BYTES:]
            self._held[peer] = int.from_bytes(parts[0], "big"), int.from_bytes(parts[1], "big")
        self._senders = frozenset(self._held)
        if len(self._senders) < self._threshold:
            raise FederationError(
                f"secure aggregation: only {len(self._senders)} clients are left."
            )
        total: Numbers = numbers.astype(np.uint64) + _stream(self._own, numbers.shape)
        for peer in self._senders - {self.client}:
            total = _plus(total, self.client, peer, self._secret_with(peer))
        return np.bitwise_and(total, _largest(self._bits))

    def reveal(self, answered: Sequence[int], gone: Sequence[int]) -> Unmasking:
        """Return the shares that undo the masks, once.

        Args:
            answered: The clients whose masked integers the server has.
            gone: Those that have shared secrets and sent nothing since.

        Raises:
            FederationError: If the lists overlap or are not those who began, too few have answered,
                or the server asks again.
        """
        present, missing = set(answered), set(gone)
        if both := present & missing:
            raise FederationError(
                f"secure aggregation: client {min(both)} is called both present and gone, which "
                "would reveal what it has sent; nothing is revealed."
            )
        if present | missing != self._senders or self.client not in present:
            raise FederationError(
                "secure aggregation: the clients who answered and those who are gone are not those "
                "who began; nothing is revealed."
            )
        if len(present) < self._threshold:
            raise FederationError(f"secure aggregation: only {len(present)} clients have answered.")
        if self._revealed:
            raise FederationError("secure aggregation: shares are revealed once a round.")
        self._revealed = True
        return Unmasking(
            self.client,
            {peer: self._held[peer][1] for peer in present},
            {peer: self._held[peer][0] for peer in missing},
        )

    def _verify(self, advert: Advert) -> None:
        exceptions = _cryptography("exceptions")
        signed = _signed(self._round, advert.client, advert.masking, advert.sealing)
        identity = self._known.get(advert.client)
        try:
            if identity is None:
                raise FederationError(f"secure aggregation: client {advert.client} is not known.")
            identity.verify(advert.signature, signed)
        except exceptions.InvalidSignature as error:
            raise FederationError(
                f"secure aggregation: the keys of client {advert.client} are not signed by its "
                "identity: somebody may stand in between."
            ) from error

    def _box(self, peer: int) -> Any:
        """Return what seals and opens what this client and another one send each other."""
        aead = _cryptography("hazmat.primitives.ciphers.aead")
        shared = self._sealing.exchange(_public(self._peers[peer].sealing))
        return aead.AESGCM(hashlib.sha256(b"seal" + self._round + shared).digest())

    def _label(self, peer: int) -> bytes:
        return self._round + f"/{self.client}/{peer}".encode()

    def _secret_with(self, peer: int) -> bytes:
        shared = self._masking.exchange(_public(self._peers[peer].masking))
        return _mask_secret(self._round, shared)


class MaskingServer:
    """The server in one round: it passes messages on and undoes the masks of the sum.

    Args:
        round_id: Names the round.
        threshold: How many clients must reveal shares.
        bits: 32 or 64.
    """

    def __init__(self, round_id: bytes, threshold: int, bits: int = 32) -> None:
        self._round, self._threshold, self._bits = round_id, threshold, bits

    def unmasked(
        self,
        adverts: Sequence[Advert],
        masked: Mapping[int, Numbers],
        gone: Sequence[int],
        revealed: Sequence[Unmasking],
    ) -> Numbers:
        """Return the sum of the integers of those who answered, modulo ``2 ** bits``.

        Args:
            adverts: The keys of all who began.
            masked: What each client that has answered sent.
            gone: Those that had shared secrets and sent nothing since.
            revealed: The shares.

        Raises:
            FederationError: If too few shares are there.
        """
        if len(revealed) < self._threshold:
            raise FederationError(
                f"secure aggregation: {len(revealed)} clients have revealed shares, "
                f"{self._threshold} are needed; the sum cannot be read."
            )
        shape = next(iter(masked.values())).shape
        total: Numbers = np.zeros(shape, np.uint64)
        for client, numbers in masked.items():
            shares = {each.client: each.own_masks[client] for each in revealed}
            own = reconstructed(shares, self._threshold).to_bytes(32, "big")
            total = total + numbers - _stream(own, shape)
        keys = {advert.client: advert.masking for advert in adverts}
        private = _cryptography("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        for lost in gone:
            shares = {each.client: each.keys[lost] for each in revealed}
            secret = reconstructed(shares, self._threshold).to_bytes(32, "big")
            key = private.from_private_bytes(secret)
            for client in masked:  # the mask that the lost client's own would have cancelled
                mask = _mask_secret(self._round, key.exchange(_public(keys[client])))
                total = _plus(total, lost, client, mask)
        return np.bitwise_and(total, _largest(self._bits))


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


def _plus(total: Numbers, client: int, peer: int, secret: bytes) -> Numbers:
    """Return the numbers with the mask of a pair: the smaller id adds it, the other subtracts."""
    mask = _stream(secret, total.shape)
    return total + mask if client < peer else total - mask


def _stream(secret: bytes, shape: tuple[int, ...]) -> Numbers:
    """Return uint64 numbers that follow from a secret and look random without it."""
    count = int(np.prod(shape, dtype=np.int64))
    digest = hashlib.shake_256(b"mask" + secret).digest(8 * count)
    return np.frombuffer(digest, np.dtype("<u8")).astype(np.uint64).reshape(shape)


def _largest(bits: int) -> np.uint64:
    return np.uint64(2**bits - 1)


def _mask_secret(round_id: bytes, shared: bytes) -> bytes:
    return hashlib.sha256(b"pair" + round_id + shared).digest()


def _signed(round_id: bytes, client: int, masking: bytes, sealing: bytes) -> bytes:
    return b"fedlightning masks/" + round_id + f"/{client}/".encode() + masking + sealing


def _public(raw: bytes) -> Any:
    return _cryptography("hazmat.primitives.asymmetric.x25519").X25519PublicKey.from_public_bytes(
        raw
    )


def _cryptography(module: str) -> Any:
    """Return a module of the package cryptography.

    Raises:
        EnvironmentFailure: If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"cryptography.{module}")
    except ImportError as error:
        raise EnvironmentFailure(
            f"masks need the package cryptography ({error}): pip install 'fedlightning[masks]'."
        ) from error
