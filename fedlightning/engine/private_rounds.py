"""A run's privacy: its budget, its ledger on the disk, and what is said about both."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from fedlightning.core.metrics import LogFlags, Metrics
from fedlightning.core.state import State
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import CheckpointError, ConfigError, FederationError
from fedlightning.federation.privacy_checks import cohorts_of
from fedlightning.federation.settings import Federation
from fedlightning.privacy.accounting import Cohorts, calibrated_multiplier, epsilon_of
from fedlightning.privacy.ledger import Ledger, Release
from fedlightning.privacy.mechanism import ClientMechanism
from fedlightning.storage.run_layout import PRIVACY

__all__ = ["BudgetSpent", "PrivateRounds"]

_log = logging.getLogger(f"pytorch_lightning.{__name__}")  # is shown where Lightning's own is
_LEDGER = "privacy/ledger"
NOT_COVERED = (
    "not covered: metrics, losses, numbers of examples, sizes of cohorts, what clients keep, "
    "personal models, and choices that were made by looking at them"
)
NO_PROMISE = "privacy: nothing is promised under fast_dev_run, which cuts cohorts"


class BudgetSpent(FederationError):
    """The next round would exceed the privacy budget."""


class PrivateRounds:
    """What differential privacy means for one run.

    Args:
        federation: Its settings; ``privacy`` is set.
        population: The number of clients that train.
        size: The (expected) number of clients in a cohort.
        rounds: ``trainer.max_epochs``.
        seed: The seed of the run.
        workers: The processes that share the work.
        folder: The run folder; ``None`` if the run leaves no files.
        cut: Whether ``fast_dev_run`` cuts cohorts, so that nothing is known of how they come about.
    """

    def __init__(
        self,
        federation: Federation,
        population: int,
        size: int,
        rounds: int | None,
        seed: int,
        workers: Workers,
        folder: Path | None,
        cut: bool = False,
    ) -> None:
        assert federation.privacy is not None, "only private runs have private rounds"
        self.privacy = federation.privacy
        self.cohorts = cohorts_of(self.privacy, federation.sampler, population, size)
        self._rounds = rounds if rounds is not None and rounds > 0 else None
        self._seed = seed
        self._workers = workers
        self._folder = folder
        self._cut = cut
        self._secret: int | None = None
        self._epsilons: dict[Ledger, float] = {}
        self._multiplier: float | None = None
        if self.privacy.secure and folder is None:
            raise ConfigError(
                "federation.privacy.secure: what was released is written down in the run folder "
                "before it is, and this run has none; set trainer.logger."
            )

    # -- before the first round ----------------------------------------------------------------

    def resume(self, state: Mapping[str, Tensor], rounds: int, released: Ledger) -> State:
        """Return the server's state with the ledger that counts.

        Args:
            state: The server's state of the checkpoint.
            rounds: How many rounds have a result.
            released: What was written down before it was released, under ``secure``.

        Raises:
            CheckpointError: If nobody knows what the earlier rounds have cost.
        """
        state = dict(state)
        if rounds and _LEDGER not in state:
            raise CheckpointError(
                f"federation.privacy: the first {rounds} rounds were made without it, and what "
                "they have shown cannot be taken back; start anew."
            )
        ledger = Ledger.of_tensor(state[_LEDGER]) if rounds else Ledger()
        if self.privacy.secure:
            # a round that was released and lost is run again with other noise: both count
            ledger = max(ledger, released, key=lambda each: each.rounds)
            state[_LEDGER] = ledger.tensor()
            # drawn anew by each resume: a round that is run again is counted like another round,
            # and two releases of one cohort cost more than those of two that were drawn apart
            self._secret = int.from_bytes(self._entropy(), "big")
            state.pop("privacy/secret", None)  # of checkpoints that kept it
        self._multiplier = self._multiplier_of(ledger)
        if self.privacy.secure:  # who goes on must find it, also before the first release
            self._write(ledger)
        return state

    def mechanism(self) -> ClientMechanism:
        """Return what the server merges updates with; after :meth:`resume`."""
        return ClientMechanism(
            self.privacy,
            self.multiplier,
            self.cohorts.size,
            self._seed,
            self._entropy,
            self._write,
        )

    @property
    def multiplier(self) -> float:
        """The noise multiplier z."""
        assert self._multiplier is not None, "resume() comes first"
        return self._multiplier

    @property
    def cohort_seed(self) -> int:
        """The seed of the cohorts: nobody may foresee them where privacy rests on them."""
        return self._seed if self._secret is None else self._secret

    def say(self) -> None:
        """Say what the run promises, before it starts; warn where sampling is the worse one."""
        if self._cut:
            _say(NO_PROMISE)
            return
        rounds, cohorts, z = self._rounds or 1, self.cohorts, self.multiplier
        planned = f"after {rounds} rounds: " if self._rounds else "for each round by itself: "
        epsilon = epsilon_of([Release(z, rounds)], cohorts, self.privacy.delta)
        _say(f"privacy {planned}{self._promise(epsilon)}; {NOT_COVERED}.")
        if not self.privacy.secure:
            _say("privacy is simulated: who knows the seed knows the noise (secure: true draws it)")
        if cohorts.kind != "poisson":
            poisson, better = self._with_poisson(rounds)
            rank_zero_warn(
                f"federation.privacy: {cohorts.how}: epsilon = {epsilon:.4g} ({cohorts.relation}) "
                f"{planned.removesuffix(': ')}. With {poisson} and cohort_size: null the same "
                f"noise gives epsilon = {better:.4g} (add or remove one client)."
            )
        if self.privacy.delta >= 1 / cohorts.population:
            rank_zero_warn(
                f"federation.privacy.delta={self.privacy.delta:g} lets one of "
                f"{cohorts.population:,} clients be given away as a whole; set it far below "
                f"{1 / cohorts.population:.1g}."
            )

    # -- rounds --------------------------------------------------------------------------------

    def require_budget(self, state: Mapping[str, Tensor], round_index: int) -> None:
        """End the run if the round would exceed the budget.

        Raises:
            BudgetSpent: If it would.
        """
        budget = self.privacy.target_epsilon
        if budget is None:
            return
        ledger = Ledger.of_tensor(state["ledger"])
        after = self._epsilon(ledger.after_round(self.multiplier))
        if after > budget:
            raise BudgetSpent(
                f"federation.privacy.target_epsilon={budget:g}: round {round_index} would take "
                f"epsilon from {self._epsilon(ledger):.4g} to {after:.4g}; {ledger.rounds} rounds "
                "are released. The last checkpoint has the model: `personalize` and `test` it, or "
                "start anew with more noise."
            )

    def metrics(self, state: Mapping[str, Tensor]) -> Metrics:
        """Return what is logged after a round."""
        values = {}
        if not self._cut:
            epsilon = self._epsilon(Ledger.of_tensor(state["ledger"]))
            values["privacy/epsilon"] = _rounded_up(epsilon)
        if "max_norm" in state:
            values["privacy/max_norm"] = float(state["max_norm"])
        return {name: (value, LogFlags()) for name, value in values.items()}

    def summary(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the lines of the closing summary."""
        if self._cut:
            return (NO_PROMISE,)
        ledger = Ledger.of_tensor(state["ledger"])
        lines = [f"privacy: {self._promise(self._epsilon(ledger))}"]
        if self.cohorts.kind != "poisson":
            poisson, better = self._with_poisson(ledger.rounds)
            lines.append(f"with {poisson}: epsilon = {better:.4g} (add or remove one client)")
        if not self.privacy.secure:
            lines.append("simulated: who knows the seed knows the noise")
        return (*lines, NOT_COVERED)

    # -- small print ---------------------------------------------------------------------------

    def _multiplier_of(self, ledger: Ledger) -> float:
        given, budget = self.privacy.noise_multiplier, self.privacy.target_epsilon
        if given is not None:
            return float(given)
        if ledger.releases:  # determined when the run began
            return ledger.releases[-1].multiplier
        if self._rounds is None:
            raise ConfigError(
                f"federation.privacy.target_epsilon={budget:g} is a budget for the whole run; set "
                "trainer.max_epochs, or noise_multiplier."
            )
        assert budget is not None, "checked by ClientDP"
        return calibrated_multiplier(budget, self._rounds, self.cohorts, self.privacy.delta)

    def _epsilon(self, ledger: Ledger) -> float:
        if ledger not in self._epsilons:
            self._epsilons[ledger] = epsilon_of(ledger.releases, self.cohorts, self.privacy.delta)
        return self._epsilons[ledger]

    def _promise(self, epsilon: float) -> str:
        return (
            f"epsilon = {epsilon:.4g} at delta = {self.privacy.delta:g} "
            f"({self.cohorts.relation}; z = {self.multiplier:.4g}, {self.cohorts.how})"
        )

    def _with_poisson(self, rounds: int) -> tuple[str, float]:
        cohorts = self.cohorts
        q = min(1.0, cohorts.size / cohorts.population)
        other = Cohorts("poisson", cohorts.size, cohorts.population, q=q)
        epsilon = epsilon_of([Release(self.multiplier, rounds)], other, self.privacy.delta)
        return f"PoissonSampler(q={q:.4g})", epsilon

    def _write(self, ledger: Ledger) -> None:
        """Write down what is about to be released."""
        if self._folder is None or self._workers.rank:
            return
        epsilon = self._epsilon(ledger)
        ledger.write(
            self._folder / PRIVACY,
            epsilon=epsilon if math.isfinite(epsilon) else None,
            delta=self.privacy.delta,
            relation=self.cohorts.relation,
            cohorts=self.cohorts.how,
            settings=repr(self.privacy),
            simulated=not self.privacy.secure,
            remarks=NOT_COVERED,
        )

    def _entropy(self) -> bytes:
        """Return the first worker's 32 bytes of the system's randomness."""
        return self._workers.gather(os.urandom(32))[0]


def _rounded_up(value: float) -> float:
    """Return the next number of single precision, in which metrics are kept: never a smaller one.

    Example:
        >>> _rounded_up(0.1) > 0.1, _rounded_up(0.5)
        (True, 0.5)
    """
    single = np.float32(value)
    return float(single if single >= value else np.nextafter(single, np.float32(math.inf)))


@rank_zero_only
def _say(text: str) -> None:
    _log.info(text)
