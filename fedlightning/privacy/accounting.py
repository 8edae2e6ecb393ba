"""What releases have cost: epsilon, by dp-accounting's theorems about sampled Gaussian noise.

The theorems are about noise relative to a *sensitivity*, and about how a cohort came about.

- Poisson sampling: neighbours differ by one client more or less, which moves the clipped sum by at
  most C; the multiplier is z.
- Cohorts of a fixed size: a client cannot be added without another one leaving, so neighbours
  differ by one client *replaced*. That moves the sum by up to 2C, so the multiplier is z/2. To pass
  z itself is a mistake by a factor of two, in our favour.
- Any other choice of cohorts: no amplification by sampling, one client replaced, z/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fedlightning.errors import ConfigError, EnvironmentFailure
from fedlightning.privacy.ledger import Release

__all__ = ["Cohorts", "Kind", "calibrated_multiplier", "epsilon_of"]

Kind = Literal["poisson", "fixed", "chosen"]
_TOLERANCE = 1e-3
_SMALLEST, _LARGEST = 0.1, 1e4
_GRID = 1e-4
_COARSE = 2e-3


@dataclass(frozen=True)
class Cohorts:
    """How cohorts come about, as far as privacy can rest on it.

    Args:
        kind: ``poisson``: every client independently; ``fixed``: uniformly, so many without
            replacement; ``chosen``: in a way that no theorem is about.
        size: The (expected) number of clients in one.
        population: The number of clients that train.
        q: The probability of each client, for ``poisson``.
        separation: In every stretch of so many rounds a client is in one cohort at most.

    Example:
        >>> Cohorts("poisson", 5.0, 100, q=0.05).relation
        'add or remove one client'
        >>> Cohorts("fixed", 5, 100).how
        '5 of 100 clients without replacement'
    """

    kind: Kind
    size: float
    population: int
    q: float = 1.0
    separation: int = 1

    @property
    def relation(self) -> str:
        """Which data sets are neighbours."""
        return "add or remove one client" if self.kind == "poisson" else "replace one client"

    @property
    def how(self) -> str:
        """The choice of cohorts in words."""
        if self.kind == "poisson" and self.separation > 1:
            return f"once in {self.separation} rounds at most, with probability {self.q:g}"
        if self.kind == "poisson":
            return f"Poisson sampling with q = {self.q:g}"
        if self.kind == "fixed":
            return f"{self.size:g} of {self.population:,} clients without replacement"
        return "no amplification by sampling"


def epsilon_of(
    releases: Sequence[Release], cohorts: Cohorts, delta: float, grid: float = _GRID
) -> float:
    r"""Return :math:`\varepsilon` of some releases at :math:`\delta`; infinite without noise.

    For Poisson sampling by privacy loss distributions. For cohorts of a fixed size the smaller of
    Rényi's bound with amplification and the exact value without it, both for one client replaced.

    Args:
        releases: Noise multipliers and numbers of rounds.
        cohorts: How cohorts came about.
        delta: :math:`\delta`.
        grid: The step in which privacy losses are rounded, upwards.

    Raises:
        EnvironmentFailure: If dp-accounting is missing.

    Source:
        Koskela, Jälkö, Honkela. Computing Tight Differential Privacy Guarantees Using FFT. AISTATS
        2020. https://arxiv.org/abs/1906.03049. Wang, Balle, Kasiviswanathan. Subsampled Rényi
        Differential Privacy and Analytical Moments Accountant. AISTATS 2019.
        https://arxiv.org/abs/1808.00087. Balle, Wang. Improving the Gaussian Mechanism for
        Differential Privacy. ICML 2018. https://arxiv.org/abs/1805.06530

    Example:
        >>> round(epsilon_of([Release(1.0, 200)], Cohorts("poisson", 50, 1000, q=0.05), 1e-5), 2)
        4.77
        >>> round(epsilon_of([Release(1.0, 200)], Cohorts("fixed", 50, 1000), 1e-5), 1)
        58.4
    """
    done = [release for release in releases if release.rounds]
    if not done:
        return 0.0
    if any(release.multiplier == 0 for release in done):
        return math.inf
    if cohorts.kind == "poisson":
        rounds = [
            (release.multiplier, math.ceil(release.rounds / cohorts.separation)) for release in done
        ]
        if cohorts.q == 1:
            return _gaussian(rounds, delta)
        return _poisson(rounds, cohorts.q, delta, grid)
    halved = [(release.multiplier / 2, release.rounds) for release in done]
    bound = _gaussian(halved, delta)
    if cohorts.kind == "fixed" and cohorts.size < cohorts.population:
        bound = min(bound, _without_replacement(halved, cohorts, delta))
    return bound


def calibrated_multiplier(
    target_epsilon: float, rounds: int, cohorts: Cohorts, delta: float
) -> float:
    r"""Return the smallest z, within 0.002, for which so many rounds keep a budget.

    Args:
        target_epsilon: The budget.
        rounds: The number of rounds.
        cohorts: How cohorts come about.
        delta: :math:`\delta`.

    Raises:
        ConfigError: If no z up to 10,000 keeps it.

    Example:
        >>> whole = Cohorts("poisson", 20, 20)  # nobody is left out: z = sqrt(rounds) * one round's
        >>> one, four = (calibrated_multiplier(1.0, n, whole, 1e-5) for n in (1, 4))
        >>> round(one, 2), round(four, 2)
        (3.73, 7.46)
    """

    def fits(z: float, grid: float) -> bool:
        return epsilon_of([Release(z, rounds)], cohorts, delta, grid) <= target_epsilon

    high = 1.0
    while not fits(high, _COARSE):
        high *= 2
        if high > _LARGEST:
            raise ConfigError(
                f"federation.privacy.target_epsilon={target_epsilon:g} cannot be kept for {rounds} "
                f"rounds at delta={delta:g} with any noise; raise it, or take fewer rounds."
            )
    low = high / 2
    while low > _SMALLEST and fits(low, _COARSE):
        low, high = low / 2, low
    while high - low > _TOLERANCE:  # a coarse grid is quick, and rounds losses up
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle, _COARSE) else (middle, high)
    while not fits(high, _GRID):
        high += _TOLERANCE
    return high


def _gaussian(rounds: Sequence[tuple[float, int]], delta: float) -> float:
    """Return epsilon of Gaussian noise without sampling, exactly: a composition is one Gaussian."""
    dp = _dp_accounting()
    precision = sum(count / z**2 for z, count in rounds)
    return float(dp.get_epsilon_gaussian(precision**-0.5, delta))


def _poisson(rounds: Sequence[tuple[float, int]], q: float, delta: float, grid: float) -> float:
    composed = _dp_accounting("pld.privacy_loss_distribution").identity(grid)
    for z, count in rounds:
        composed = composed.compose(_one_round(z, q, grid).self_compose(count))
    return float(composed.get_epsilon_for_delta(delta))


@lru_cache(maxsize=8)
def _one_round(z: float, q: float, grid: float) -> Any:
    """Return the privacy loss distribution of one round, which takes most of the time."""
    pld = _dp_accounting("pld.privacy_loss_distribution")
    return pld.from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=grid)


def _without_replacement(
    rounds: Sequence[tuple[float, int]], cohorts: Cohorts, delta: float
) -> float:
    dp, rdp = _dp_accounting(), _dp_accounting("rdp")
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    for z, count in rounds:
        event = dp.SampledWithoutReplacementDpEvent(
            cohorts.population, round(cohorts.size), dp.GaussianDpEvent(z)
        )
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def _dp_accounting(module: str = "") -> Any:
    """Return dp-accounting, or a module of it; its import takes two seconds.

    Raises:
        EnvironmentFailure: If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(".".join(filter(None, ("dp_accounting", module))))
    except ImportError as error:
        raise EnvironmentFailure(
            f"federation.privacy needs the package dp-accounting ({error}): "
            "pip install 'fedlightning[dp]'."
        ) from error
