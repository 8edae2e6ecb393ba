"""The server's half of masked sums: it passes keys and shares on, and reads the sum alone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.core.messages import ClientUpdate
from fedlightning.deployment.masks.phases import (
    KEYS,
    MASK,
    REVEAL,
    SHARES,
    advert_in,
    bytes_of,
    clients_as,
    unmasking_in,
)
from fedlightning.deployment.messages import Order, Phase, common_digest
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.server import Server
from fedlightning.privacy.masking import Advert, MaskingServer

__all__ = ["MaskedSums"]

_Ask = Callable[[Mapping[int, Phase]], Mapping[int, Mapping[str, bytes]]]


class MaskedSums:
    """Has clients agree on masks before they train, and take them off the sum afterwards.

    Four messages per client and round: keys, shares, the order to train, shares revealed.

    Args:
        rule: The settings of the sum.
    """

    def __init__(self, rule: SecureSum) -> None:
        self._rule = rule
        self._session = ""
        self._adverts: list[Advert] = []
        self._began: frozenset[int] = frozenset()
        self._total: np.ndarray | None = None

    def before(self, clients: Sequence[int], commit: int, ask: _Ask) -> Mapping[int, Phase]:
        """Collect the clients' keys, then their shares; return what each is to mask with.

        Raises:
            FederationError: If too few clients are there.
        """
        self._total = None
        self._session = session = f"{commit}-{secrets.token_hex(16)}"
        self._require(len(clients), self._rule.needed(len(clients)), "take part")
        keys = ask({client: Phase(KEYS, session) for client in clients})
        self._adverts = [advert_in(client, keys[client]) for client in clients if client in keys]
        least = self._rule.needed(len(self._adverts))
        self._require(len(self._adverts), least, "have sent keys")
        everyones = {f"{client}": bytes_of(keys[client]) for client in keys}
        shares = ask({client: Phase(SHARES, session, everyones) for client in keys})
        self._require(len(shares), least, "have sent shares")
        self._began = frozenset(shares)
        return {
            client: Phase(MASK, session, {
                f"{peer}": _from(peer, sealed, client)
                for peer, sealed in shares.items() if peer != client
            })
            for client in shares
        }  # fmt: skip

    def after(
        self, updates: Mapping[int, ClientUpdate], orders: Mapping[int, Order], ask: _Ask
    ) -> Mapping[int, ClientUpdate]:
        """Read the sum; return the updates without their integers.

        Raises:
            FederationError: If too few clients are left to take the masks off.
            ConfigError: If the algorithm sends clients different things: their masks do not cancel.
        """
        if any(update.unsent for update in updates.values()):  # the round is about to begin anew
            return {client: _without_numbers(update) for client, update in updates.items()}
        if not updates:
            return updates
        contexts = {common_digest(orders[client]) for client in updates}
        if len(contexts) > 1:
            raise ConfigError(
                "federation.aggregator: under SecureSum all clients of a round must receive the "
                "same model, extras and learning rates, and this algorithm sends them others; "
                "leave SecureSum out."
            )
        masked = {client: _numbers(update) for client, update in updates.items()}
        sizes = {len(numbers) for numbers in masked.values()}
        if len(sizes) > 1:
            raise FederationError(
                f"secure aggregation: clients have sent {min(sizes)} to {max(sizes)} numbers, and "
                "all must send the same tensors."
            )
        least = self._rule.needed(len(self._adverts))
        self._require(len(masked), least, "have sent an update")
        gone = sorted(self._began - masked.keys())
        lists = {"answered": clients_as(masked), "gone": clients_as(gone)}
        replies = ask({client: Phase(REVEAL, self._session, lists) for client in masked})
        revealed = [unmasking_in(client, reply, masked, gone) for client, reply in replies.items()]
        server = MaskingServer(self._session.encode(), least, self._rule.bits)
        self._total = server.unmasked(self._adverts, masked, gone, revealed, contexts.pop())
        return {client: _without_numbers(update) for client, update in updates.items()}

    def combine(self, server: Server) -> None:
        """Add the sum to the server."""
        total = self._total
        if total is not None:
            server.combine(lambda mine: [mine], lambda sums: _add(sums, total))

    def _require(self, there: int, least: int, what: str) -> None:
        if there < least:
            raise FederationError(
                f"secure aggregation: {there} clients {what}, and {least} are needed for a sum "
                "that tells of none of them."
            )


def _from(peer: int, sealed: Mapping[str, bytes], client: int) -> bytes:
    if f"{client}" not in sealed:
        raise FederationError(f"secure aggregation: client {peer} has no shares for {client}.")
    return sealed[f"{client}"]


def _numbers(update: ClientUpdate) -> np.ndarray:
    if update.payload is None or update.state:
        raise FederationError(
            f"client {update.client} has sent an update that is not masked; nothing is merged."
        )
    return update.payload.numpy().reshape(-1).astype(np.uint64)


def _without_numbers(update: ClientUpdate) -> ClientUpdate:
    """Return an update whose extras are zeros: what they were is in the sum."""
    extras = {
        key: torch.zeros(value.shape, dtype=value.dtype) for key, value in update.extras.items()
    }
    return replace(update, payload=None, extras=extras, elsewhere=True)


def _add(sums: Tensor, total: np.ndarray) -> None:
    if sums.shape != total.shape:
        raise FederationError(
            f"secure aggregation: the sum has {total.size} numbers, the model {sums.numel()}."
        )
    sums += torch.from_numpy(total.view(np.int64))
