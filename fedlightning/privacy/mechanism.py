"""The server's side of a private round: clip, sum, add noise, divide by a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.seeding import Key
from fedlightning.core.state import State, as_complex, as_real, widest_float
from fedlightning.errors import ConfigError
from fedlightning.privacy.banded import BandedNoise
from fedlightning.privacy.ledger import Ledger
from fedlightning.privacy.noise import KeyedNoise, Noise, SystemNoise
from fedlightning.privacy.settings import ClientDP

__all__ = ["MAX_NORM", "WITHIN", "ClientMechanism", "PrivateRound"]

LEDGER = "ledger"
NORM = "max_norm"
_EXTRA = "extra:"
MAX_NORM = "privacy/max_norm"
"""The name under which clients receive the clipping norm, where it moves."""

WITHIN = "privacy/within"
"""The name under which clients send whether their update was within it."""


@dataclass
class Merged:
    """What a private round gives beside the model; as of other rounds.

    Args:
        merged: The extras.
    """

    merged: State
    individual: list[tuple[int, Mapping[str, Tensor]]] = field(default_factory=list)


class ClientMechanism:
    """Makes private rounds and keeps the ledger; its state is part of the server's.

    Args:
        privacy: The settings.
        multiplier: The noise multiplier z.
        expected_cohort: The expected number of clients in a cohort, by which sums are divided.
        seed: The seed of the run.
        entropy: Returns 32 bytes of the system's randomness, the same on all workers, for
            ``secure`` noise.
        before_release: Called with the ledger that holds the round, before its noise is drawn.

    Raises:
        ConfigError: If adaptive clipping leaves no noise for the updates.
    """

    def __init__(
        self,
        privacy: ClientDP,
        multiplier: float,
        expected_cohort: float,
        seed: int,
        entropy: Callable[[], bytes] | None = None,
        before_release: Callable[[Ledger], None] = lambda ledger: None,
    ) -> None:
        self.privacy = privacy
        self.multiplier = multiplier
        self.expected_cohort = expected_cohort
        self._seed = seed
        self._entropy = entropy
        self._before_release = before_release
        self._banded = BandedNoise(privacy.bands)
        self._bit_noise, self._update_noise = 0.0, multiplier
        adaptive = privacy.adaptive
        if adaptive is not None and multiplier > 0:
            self._bit_noise = adaptive.bit_noise_of(expected_cohort)
            left = multiplier**-2 - (2 * self._bit_noise) ** -2
            if left <= 0:
                raise ConfigError(
                    f"federation.privacy.max_norm.bit_noise={self._bit_noise:g} leaves no noise "
                    f"for the updates at noise_multiplier={multiplier:g}: it must be more than "
                    f"{multiplier / 2:g}; raise it, or take larger cohorts."
                )
            self._update_noise = left**-0.5

    def start(self) -> State:
        """Return the state before the first round."""
        state = {LEDGER: Ledger().tensor()}
        if self.privacy.adaptive is not None:
            state[NORM] = torch.tensor(self.privacy.first_norm, dtype=torch.float64)
        return state

    def max_norm(self, state: Mapping[str, Tensor]) -> float:
        """Return the clipping norm of the next round."""
        return float(state[NORM]) if NORM in state else self.privacy.first_norm

    def broadcast(self, state: Mapping[str, Tensor]) -> State:
        """Return what clients receive: the clipping norm, where it moves."""
        return {MAX_NORM: state[NORM]} if NORM in state else {}

    def open(
        self,
        state: Mapping[str, Tensor],
        received: Mapping[str, Tensor],
        moving: Iterable[str],
        extras: Mapping[str, Tensor],
        version: int,
    ) -> PrivateRound:
        """Start a round.

        Args:
            state: The mechanism's part of the server's state.
            received: The shared part of the model that clients have received.
            moving: Its keys that clients train; all others stay as they are.
            extras: Tensors like the extras that every client sends.
            version: The round.
        """
        return PrivateRound(self, state, received, moving, extras, version)

    def release(self, state: Mapping[str, Tensor], version: int) -> tuple[Ledger, Noise]:
        """Count a round in the ledger; then return the round's noise."""
        ledger = Ledger.of_tensor(state[LEDGER]).after_round(self.multiplier)
        self._before_release(ledger)
        if not self.privacy.secure:
            return ledger, KeyedNoise(Key(self._seed, "noise", round=version))
        assert self._entropy is not None, "secure noise needs the system's randomness"
        return ledger, SystemNoise(self._entropy())

    def next_norm(self, state: Mapping[str, Tensor], bits: float, noise: Noise) -> State:
        """Return the clipping norm after a round in which the centred bits sum up to ``bits``."""
        adaptive = self.privacy.adaptive
        if adaptive is None:
            return {}
        noisy = bits + self._bit_noise * float(noise.normal([]))
        share = noisy / self.expected_cohort + 0.5
        norm = self.max_norm(state) * math.exp(-adaptive.lr * (share - adaptive.quantile))
        return {NORM: torch.tensor(norm, dtype=torch.float64)}

    def correlated(
        self, fresh: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[State, State]:
        """Return the noise of a round, and what the next one has to know of it.

        Args:
            fresh: Independent noise for each sum.
            state: The mechanism's part of the server's state.
        """
        noises = {key: self._banded.next(key, value, state) for key, value in fresh.items()}
        return noises, self._banded.remembered(noises, state)

    def std(self, max_norm: float) -> float:
        """Return the standard deviation of the noise on a sum of updates."""
        return self._update_noise * max_norm


class PrivateRound:
    """One round's sum; takes the place of a mean.

    Whatever a client sends, it moves the sum by the clipping norm at most: clipping is repeated
    here, in float64, and an update that is not finite, or not of the expected form, counts as zero.

    Args:
        mechanism: Whose round it is.
        state: The mechanism's part of the server's state.
        received: The shared part of the model.
        moving: Its keys that clients train.
        extras: Tensors like the extras that every client sends.
        version: The round.
    """

    def __init__(
        self,
        mechanism: ClientMechanism,
        state: Mapping[str, Tensor],
        received: Mapping[str, Tensor],
        moving: Iterable[str],
        extras: Mapping[str, Tensor],
        version: int,
    ) -> None:
        self._mechanism = mechanism
        self._state = state
        self._like = {key: received[key] for key in moving}
        self._received = as_real(self._like)
        self._extras = dict(extras)
        self._version = version
        self._max_norm = mechanism.max_norm(state)
        self._sums = {
            key: torch.zeros_like(value, dtype=widest_float(value.device))
            for key, value in {**self._received, **_prefixed(self._extras)}.items()
        }
        self._bits = 0.0
        self.count = max(1, round(mechanism.expected_cohort))
        self.states: list[State] = []
        self.after: State = {}

    @torch.no_grad()
    def push(self, update: ClientUpdate) -> None:
        """Take one update in; its tensors may be overwritten afterwards."""
        extras = {key: value for key, value in update.extras.items() if key != WITHIN}
        changes = self._changes({key: update.state.get(key) for key in self._like}, extras)
        norm = _norm(changes) if changes is not None else math.nan
        if changes is None or not math.isfinite(norm):
            return
        scale = 1.0 if norm <= self._max_norm else self._max_norm / norm
        for key, change in changes.items():
            self._sums[key].add_(change, alpha=scale)
        if self._mechanism.privacy.adaptive is not None:
            within = update.extras.get(WITHIN)
            bit = float(within) if within is not None and within.numel() == 1 else 0.0
            self._bits += (1.0 if bit > 0.5 else 0.0) - 0.5

    @torch.no_grad()
    def result(self) -> tuple[State, Merged]:
        """Return the next values of what clients train, and the extras; both with noise."""
        mechanism = self._mechanism
        ledger, noise = mechanism.release(self._state, self._version)
        std, among = mechanism.std(self._max_norm), mechanism.expected_cohort
        self.after, moved = {LEDGER: ledger.tensor()}, self._sums
        if std:
            fresh = {k: std * noise.normal(v.shape).to(v) for k, v in self._sums.items()}
            noises, remembered = mechanism.correlated(fresh, self._state)
            self.after |= remembered
            moved = {key: total + noises[key] for key, total in self._sums.items()}
        moved = {key: total / among for key, total in moved.items()}
        self.after |= mechanism.next_norm(self._state, self._bits, noise)
        merged = {
            key: (before.to(moved[key].dtype) + moved[key]).to(before.dtype)
            for key, before in self._received.items()
        }
        real = as_real(self._extras)
        extras = {key: moved[_EXTRA + key].to(value.dtype) for key, value in real.items()}
        return as_complex(merged, self._like), Merged(as_complex(extras, self._extras))

    def _changes(
        self, state: Mapping[str, Tensor | None], extras: Mapping[str, Tensor]
    ) -> State | None:
        """Return what the client adds to each sum; ``None`` if it is not of the expected form."""
        known = {key: value for key, value in state.items() if value is not None}
        sent = {**as_real(known), **_prefixed(extras)}
        if sent.keys() != self._sums.keys():
            return None
        if any(sent[key].shape != total.shape for key, total in self._sums.items()):
            return None
        wide = {key: sent[key].to(total) for key, total in self._sums.items()}
        return {
            key: value - self._received[key].to(value) if key in self._received else value
            for key, value in wide.items()
        }


def _prefixed(extras: Mapping[str, Tensor]) -> State:
    return {_EXTRA + key: value for key, value in as_real(extras).items()}


def _norm(changes: Mapping[str, Tensor]) -> float:
    """Return the norm of all tensors as one vector; finite where all of them are, as far as can be.

    Each tensor is scaled by its largest entry first, so squares do not overflow.
    """
    norms = []
    for value in changes.values():
        largest = float(value.abs().max()) if value.numel() else 0.0
        if not math.isfinite(largest):
            return math.inf
        if largest:
            norms.append(largest * float(torch.linalg.vector_norm(value / largest)))
    return math.hypot(*norms)
