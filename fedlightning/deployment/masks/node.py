"""A node's half of masked sums, and what it must remember between two messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.core.messages import ClientUpdate
from fedlightning.deployment.identities import Identity
from fedlightning.deployment.masks.phases import (
    KEYS,
    MASK,
    REVEAL,
    SHARES,
    advert_as,
    advert_of,
    clients_in,
    unmasking_as,
)
from fedlightning.deployment.messages import Order, Phase, common_digest
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.server import summands_of
from fedlightning.privacy.masking import MaskingClient
from fedlightning.storage.files import (
    append_line,
    os_errors_as_failures,
    sync_folder,
    write_atomically,
)

__all__ = ["NodeMasks"]

_FILE, _LOCK, _OLD = "session.json", ".lock", "begun.txt"


class NodeMasks:
    """Masks a client's updates.

    Every message may be answered by a process of its own, and the same message by two, so the
    secrets of the round under way are in a file that its owner alone may read. The next round's
    take their place.

    Args:
        rule: The settings of the sum.
        client: Client id.
        folder: The client's folder.
        identity: The node's key, and the others' public ones.
    """

    def __init__(self, rule: SecureSum, client: int, folder: Path, identity: Identity) -> None:
        self._rule = rule
        self._client = client
        self._folder = folder / "masks"
        self._identity = identity

    def check(self, num_clients: int) -> None:
        """Refuse a run whose clients are not all known.

        Raises:
            ConfigError: One is not.
        """
        if missing := set(range(num_clients)) - self._identity.known.keys():
            raise ConfigError(f"node-config peers has no key of client {min(missing)}.")

    def reply(self, phase: Phase) -> Mapping[str, bytes]:
        """Answer with keys, with shares, or with what takes masks off.

        Raises:
            FederationError: The phase would give away more than the sum, or is unknown.
        """
        steps: dict[str, Callable[[_Session, Phase], Mapping[str, bytes]]] = {
            KEYS: self._keys,
            SHARES: self._shares,
            REVEAL: self._reveal,
        }
        if phase.name not in steps:
            raise FederationError(f"secure aggregation has no phase {phase.name!r}.")
        with self._session(phase.session, begin=phase.name == KEYS) as session:
            return steps[phase.name](session, phase)

    def send(self, order: Order, update: ClientUpdate) -> ClientUpdate:
        """Return the update with masked integers in the place of all its numbers.

        Raises:
            FederationError: The order does not say with whom to mask.
        """
        phase = order.phase
        if phase is None or phase.name != MASK:
            raise FederationError(
                "the server asks for an update without masks, and federation.aggregator is "
                "SecureSum; nothing has been sent."
            )
        summands = summands_of(update, order.state, self._rule)
        numbers = np.concatenate(
            [np.zeros(0, np.uint64), *(summands[key].reshape(-1) for key in sorted(summands))]
        )
        with self._session(phase.session) as session:
            session.update = hashlib.sha256(numbers.tobytes()).hexdigest()
            sealed = {int(peer): text for peer, text in phase.content.items()}
            masked = session.member.mask(numbers, sealed, common_digest(order))
        payload = self._payload(masked)
        return replace(update, state={}, extras=_shapes(update.extras), payload=payload)

    def _keys(self, session: _Session, phase: Phase) -> Mapping[str, bytes]:
        return advert_as(session.member.advertise())

    def _shares(self, session: _Session, phase: Phase) -> Mapping[str, bytes]:
        adverts = [advert_of(int(client), content) for client, content in phase.content.items()]
        return {f"{peer}": text for peer, text in session.member.share(adverts).items()}

    def _reveal(self, session: _Session, phase: Phase) -> Mapping[str, bytes]:
        answered, gone = (clients_in(phase.content[name]) for name in ("answered", "gone"))
        session.require_same_sum(answered)
        return unmasking_as(session.member.reveal(answered, gone))

    def _payload(self, masked: np.ndarray) -> Tensor:
        if self._rule.bits == 32:
            return torch.from_numpy(masked.astype(np.uint32))
        return torch.from_numpy(masked)

    @contextmanager
    def _session(self, name: str, begin: bool = False) -> Iterator[_Session]:
        """Yield what is remembered of a session; what changed is on the disk before an answer is.

        Raises:
            FederationError: It is not the one that has begun last.
        """
        path = self._folder / _FILE
        with self._alone():
            memory: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
            member = memory.get("member")
            if memory.get("session") != name and not begin:
                raise FederationError(
                    f"secure aggregation: client {self._client}'s store, {self._folder}, knows "
                    "nothing of this round's keys: another round has begun, or it was cleared."
                )
            if memory.get("session") != name:
                self._refuse_old(name)
                self._note_old(memory.get("session"))  # before its secrets, the sign of it, go
                member = None
            session = _Session(self._member(name, member), memory.get("update"), memory.get("sums"))
            yield session
            after = {
                "session": name,
                "member": session.member.remembered(),
                "update": session.update,
                "sums": session.sums,
            }
            write_atomically(path, json.dumps(after).encode())
            sync_folder(self._folder)

    def _old(self) -> set[str]:
        path = self._folder / _OLD
        return set(path.read_text().split("\n")[:-1]) if path.exists() else set()

    def _refuse_old(self, name: str) -> None:
        """Refuse to begin an old session: others' keys that came out then could be played back.

        Raises:
            FederationError: It is one.
        """
        if name.splitlines() != [name]:  # it is a line of the list
            raise FederationError(f"secure aggregation: {name!r} is not the name of a session.")
        if name in self._old():
            raise FederationError(
                "secure aggregation: the server begins a round's masks under a name that it has "
                "used before; nothing has been sent."
            )

    def _note_old(self, name: str | None) -> None:
        if name is None or name in self._old():
            return
        path = self._folder / _OLD
        if not path.exists():
            write_atomically(path, b"")
        append_line(path, name)

    def _member(self, name: str, memory: Mapping[str, Any] | None) -> MaskingClient:
        rule, identity = self._rule, self._identity
        if memory is not None:
            return MaskingClient.recalled(memory, identity.key, identity.known, rule.needed)
        return MaskingClient(
            self._client, name.encode(), identity.key, identity.known, rule.needed, rule.bits
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of this node out."""
        with os_errors_as_failures("write", self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            handle = (self._folder / _LOCK).open("wb")
        with handle:
            try:
                import fcntl
            except ImportError:  # Windows
                pass
            else:
                fcntl.lockf(handle, fcntl.LOCK_EX)
            yield


class _Session:
    """A round's masks at one client.

    Args:
        member: The client in the protocol.
        update: A digest of the numbers that were masked last.
        sums: Those of the last sum whose masks came off, and the clients in it.
    """

    def __init__(self, member: MaskingClient, update: Any, sums: Any) -> None:
        self.member = member
        self.update = update
        self.sums = sums

    def require_same_sum(self, answered: list[int]) -> None:
        """Refuse a second sum over one update: the difference of both would tell who is missing.

        Raises:
            FederationError: It is over other clients than the first.
        """
        known = self.sums
        if known is not None and known[0] == self.update and known[1] != sorted(answered):
            before, now = (", ".join(map(str, who)) for who in (known[1], sorted(answered)))
            raise FederationError(
                f"secure aggregation: this update was in a sum over clients {before} already, and "
                f"is now to be in one over {now}, so their difference would show; have the same "
                "clients take part, or change seed_everything."
            )
        self.sums = [self.update, sorted(answered)]


def _shapes(extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that have names, shapes and dtypes alone."""
    return {
        key: torch.sparse_coo_tensor(
            torch.zeros(value.ndim, 0, dtype=torch.long),
            torch.zeros(0, dtype=value.dtype),
            value.shape,
            is_coalesced=True,
            check_invariants=True,
        )
        for key, value in extras.items()
    }
