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
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlightning.core.validation import check_integer
from fedlightning.errors import FederationError
from fedlightning.privacy.cryptography_package import cryptography_module
from fedlightning.privacy.secret_shares import SHARE_BYTES, reconstructed, shares_of

__all__ = ["Advert", "MaskingClient", "MaskingServer", "Unmasking", "reconstructed", "shares_of"]

Numbers = npt.NDArray[np.uint64]


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
        identity: The client's signing key: Ed25519, or something else with its ``sign``.
        known: The public identities of all clients, known beforehand, with Ed25519's ``verify``.
        threshold: How many clients must be left, more than half of those that begin; or what
            returns it, given how many begin.
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
        threshold: int | Callable[[int], int],
        bits: int = 32,
    ) -> None:
        keys = cryptography_module("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        self.client = client
        self._round, self._identity, self._known = round_id, identity, dict(known)
        fixed = None if callable(threshold) else check_integer("threshold", threshold, at_least=2)
        self._needed: Callable[[int], int] = (
            threshold if callable(threshold) else lambda clients: int(fixed or 0)
        )
        self._threshold = 0
        self._bits = bits
        self._masking, self._sealing = keys.generate(), keys.generate()
        self._own = os.urandom(32)
        self._peers: dict[int, Advert] = {}
        self._sealed: dict[int, bytes] = {}
        self._held: dict[int, tuple[int, int]] = {}
        self._senders: frozenset[int] = frozenset()
        self._masked = ""
        self._revealed: tuple[frozenset[int], frozenset[int]] | None = None

    def advertise(self) -> Advert:
        """Return the client's keys, signed."""
        masking, sealing = self._public_keys()
        signature = self._identity.sign(_signed(self._round, self.client, masking, sealing))
        return Advert(self.client, masking, sealing, signature)

    def share(self, adverts: Sequence[Advert]) -> dict[int, bytes]:
        """Return, for each other client, sealed shares of this client's secrets.

        Asked again with the same keys it returns the same.

        Raises:
            FederationError: If too few clients are there, one is there twice, or a key is not
                signed by the identity that this client knows; or if it has shared its secrets with
                others already: two sets of shares could give them away.
        """
        peers = {advert.client: advert for advert in adverts}
        if len(peers) != len(adverts) or self.client not in peers:
            raise FederationError("secure aggregation: each client must be there once, I included.")
        if self._sealed:
            if peers != self._peers:
                raise FederationError(
                    "secure aggregation: shares are made once a round, and these are other keys."
                )
            return dict(self._sealed)
        mine = peers[self.client]
        if (mine.masking, mine.sealing) != self._public_keys():
            raise FederationError("secure aggregation: these are not the keys that I have sent.")
        self._threshold = self._needed(len(adverts))
        if not len(adverts) / 2 < self._threshold <= len(adverts):
            raise FederationError(
                f"secure aggregation: a threshold of {self._threshold} among {len(adverts)} "
                "clients is not more than half of them, or more than there are."
            )
        for advert in adverts:
            self._verify(advert)
        self._peers = peers
        secret = int.from_bytes(self._masking.private_bytes_raw(), "big")
        ids = sorted(self._peers)
        keys = shares_of(secret, ids, self._threshold)
        own = shares_of(int.from_bytes(self._own, "big"), ids, self._threshold)
        sealed = {}
        for peer in ids:
            if peer == self.client:
                self._held[peer] = keys[peer], own[peer]
                continue
            text = keys[peer].to_bytes(SHARE_BYTES, "big") + own[peer].to_bytes(SHARE_BYTES, "big")
            nonce = os.urandom(12)
            sealed[peer] = nonce + self._box(peer).encrypt(nonce, text, self._label(peer))
        self._sealed = sealed
        return dict(sealed)

    def mask(self, numbers: Numbers, sealed: Mapping[int, bytes], context: bytes = b"") -> Numbers:
        """Return masked integers, after taking in what others have sealed for this client.

        Asked again for the same it returns the same.

        Args:
            numbers: uint64, below ``2 ** bits``.
            sealed: For each client that has sealed its shares, those for this one.
            context: What all clients must have in common, such as a digest of the model that they
                start from: masks cancel among those who have the same, and nothing can be read of
                the others' sum.

        Raises:
            FederationError: If too few clients have, what one has sealed was changed, or other
                numbers have been masked in this round, whose difference would show.
        """
        exceptions = cryptography_module("exceptions")
        content = hashlib.sha256(numbers.astype("<u8").tobytes() + context)
        content.update(json.dumps(sorted((peer, t.hex()) for peer, t in sealed.items())).encode())
        if self._masked not in ("", content.hexdigest()):
            raise FederationError(
                "secure aggregation: numbers are masked once a round, and these are others."
            )
        if strangers := sealed.keys() - (self._peers.keys() - {self.client}):
            raise FederationError(f"secure aggregation: client {min(strangers)} has not begun.")
        for peer, text in sealed.items():
            label = self._round + f"/{peer}/{self.client}".encode()
            try:
                opened = self._box(peer).decrypt(text[:12], text[12:], label)
            except exceptions.InvalidTag as error:
                raise FederationError(
                    f"secure aggregation: shares of client {peer} were changed on the way."
                ) from error
            parts = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            self._held[peer] = int.from_bytes(parts[0], "big"), int.from_bytes(parts[1], "big")
        self._senders = frozenset(self._held)
        if len(self._senders) < self._threshold:
            raise FederationError(
                f"secure aggregation: only {len(self._senders)} clients are left."
            )
        self._masked = content.hexdigest()
        total: Numbers = numbers.astype(np.uint64) + _stream(self._own, numbers.shape)
        for peer in self._senders - {self.client}:
            total = _plus(total, self.client, peer, self._secret_with(peer, context))
        return np.bitwise_and(total, _largest(self._bits))

    def reveal(self, answered: Sequence[int], gone: Sequence[int]) -> Unmasking:
        """Return the shares that undo the masks, once; asked again for the same, the same.

        Args:
            answered: The clients whose masked integers the server has.
            gone: Those that have shared secrets and sent nothing since.

        Raises:
            FederationError: If the lists overlap or are not those who began, too few have answered,
                or the server has asked with other lists before.
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
        if self._revealed not in (None, (frozenset(present), frozenset(missing))):
            raise FederationError("secure aggregation: shares are revealed once a round.")
        self._revealed = frozenset(present), frozenset(missing)
        return Unmasking(
            self.client,
            {peer: self._held[peer][1] for peer in present},
            {peer: self._held[peer][0] for peer in missing},
        )

    # -- between two messages ------------------------------------------------------------------

    def remembered(self) -> dict[str, Any]:
        """Return what the client must know at its next step, secrets included, for a JSON file."""
        revealed = self._revealed
        return {
            "client": self.client,
            "round": self._round.hex(),
            "bits": self._bits,
            "threshold": self._threshold,
            "masking": self._masking.private_bytes_raw().hex(),
            "sealing": self._sealing.private_bytes_raw().hex(),
            "own": self._own.hex(),
            "peers": [
                [peer.client, peer.masking.hex(), peer.sealing.hex(), peer.signature.hex()]
                for peer in self._peers.values()
            ],
            "sealed": [[peer, text.hex()] for peer, text in self._sealed.items()],
            "held": [[peer, hex(key), hex(own)] for peer, (key, own) in self._held.items()],
            "senders": sorted(self._senders),
            "masked": self._masked,
            "revealed": [sorted(who) for who in revealed] if revealed is not None else None,
        }

    @classmethod
    def recalled(
        cls,
        memory: Mapping[str, Any],
        identity: Any,
        known: Mapping[int, Any],
        threshold: int | Callable[[int], int],
    ) -> MaskingClient:
        """Return a client as :meth:`remembered` has left it.

        Args:
            memory: What it remembers.
            identity: As for a new one.
            known: Likewise.
            threshold: Likewise.
        """
        keys = cryptography_module("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        round_id = bytes.fromhex(memory["round"])
        self = cls(memory["client"], round_id, identity, known, threshold, memory["bits"])
        self._threshold = memory["threshold"]
        self._masking = keys.from_private_bytes(bytes.fromhex(memory["masking"]))
        self._sealing = keys.from_private_bytes(bytes.fromhex(memory["sealing"]))
        self._own = bytes.fromhex(memory["own"])
        self._peers = {
            peer: Advert(peer, *map(bytes.fromhex, keys_of)) for peer, *keys_of in memory["peers"]
        }
        self._sealed = {peer: bytes.fromhex(text) for peer, text in memory["sealed"]}
        self._held = {peer: (int(key, 16), int(own, 16)) for peer, key, own in memory["held"]}
        self._senders, self._masked = frozenset(memory["senders"]), memory["masked"]
        if memory["revealed"] is not None:
            present, missing = map(frozenset, memory["revealed"])
            self._revealed = present, missing
        return self

    def _public_keys(self) -> tuple[bytes, bytes]:
        masking, sealing = (
            key.public_key().public_bytes_raw() for key in (self._masking, self._sealing)
        )
        return masking, sealing

    def _verify(self, advert: Advert) -> None:
        exceptions = cryptography_module("exceptions")
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
        aead = cryptography_module("hazmat.primitives.ciphers.aead")
        shared = self._sealing.exchange(_public(self._peers[peer].sealing))
        return aead.AESGCM(hashlib.sha256(b"seal" + self._round + shared).digest())

    def _label(self, peer: int) -> bytes:
        return self._round + f"/{self.client}/{peer}".encode()

    def _secret_with(self, peer: int, context: bytes) -> bytes:
        shared = self._masking.exchange(_public(self._peers[peer].masking))
        return _mask_secret(self._round, shared, context)


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
        context: bytes = b"",
    ) -> Numbers:
        """Return the sum of the integers of those who answered, modulo ``2 ** bits``.

        Args:
            adverts: The keys of all who began.
            masked: What each client that has answered sent.
            gone: Those that had shared secrets and sent nothing since.
            revealed: The shares.
            context: What all clients have in common.

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
            own = self._secret(client, shares)
            total = total + numbers - _stream(own, shape)
        keys = {advert.client: advert.masking for advert in adverts}
        private = cryptography_module("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        for lost in gone:
            shares = {each.client: each.keys[lost] for each in revealed}
            secret = self._secret(lost, shares)
            key = private.from_private_bytes(secret)
            for client in masked:  # the mask that the lost client's own would have cancelled
                mask = _mask_secret(self._round, key.exchange(_public(keys[client])), context)
                total = _plus(total, lost, client, mask)
        return np.bitwise_and(total, _largest(self._bits))

    def _secret(self, client: int, shares: Mapping[int, int]) -> bytes:
        try:
            return reconstructed(shares, self._threshold).to_bytes(32, "big")
        except OverflowError as error:
            raise FederationError(
                f"secure aggregation: the shares of client {client}'s secret do not fit together: "
                "a client has revealed a wrong one; the sum cannot be read."
            ) from error


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


def _mask_secret(round_id: bytes, shared: bytes, context: bytes) -> bytes:
    return hashlib.sha256(b"pair" + shared + hashlib.sha256(context).digest() + round_id).digest()


def _signed(round_id: bytes, client: int, masking: bytes, sealing: bytes) -> bytes:
    return b"fedlightning masks/" + round_id + f"/{client}/".encode() + masking + sealing


def _public(raw: bytes) -> Any:
    x25519 = cryptography_module("hazmat.primitives.asymmetric.x25519")
    return x25519.X25519PublicKey.from_public_bytes(raw)
