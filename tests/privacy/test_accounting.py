"""Epsilon is dp-accounting's, within another library's bounds, and honest about fixed cohorts."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest

from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.privacy import Cohorts, Ledger, Release, calibrated_multiplier, epsilon_of

dp = pytest.importorskip("dp_accounting", reason="needs the extra dp")

DELTA = 1e-5


def poisson(q: float, **more) -> Cohorts:
    return Cohorts("poisson", 1000 * q, 1000, q=q, **more)


FIXED = Cohorts("fixed", 50, 1000)


@pytest.mark.parametrize(("z", "q", "rounds"), [(1.0, 0.05, 200), (2.0, 0.2, 10), (4.0, 0.1, 1000)])
def test_poisson_is_dp_accounting_called_directly(z, q, rounds):
    check_direct(z, q, rounds)


@pytest.mark.parametrize("counted", [Release(2.0, 200), Release(1.0, 199), Release(1.0, 0)])
def test_mutants_that_count_less_are_found_out(counted):
    """Sensitivity taken for half of what it is; a release that is left out; all of them."""
    with pytest.raises(AssertionError):
        check_direct(1.0, 0.05, 200, counted)


def check_direct(z: float, q: float, rounds: int, counted: Release | None = None) -> None:
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)), rounds)
    ours = epsilon_of([counted or Release(z, rounds)], poisson(q), DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-9)


def test_stretches_with_other_noise_compose():
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    for z, rounds in ((1.0, 3), (2.0, 5)):
        accountant.compose(dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(z)), rounds)
    ours = epsilon_of([Release(1.0, 3), Release(2.0, 5)], poisson(0.2), DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-9)


def test_poisson_lies_within_the_bounds_of_prv_accountant():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prv = pytest.importorskip("prv_accountant")
        mechanism = prv.PoissonSubsampledGaussianMechanism(
            noise_multiplier=1.0, sampling_probability=0.05
        )
        accountant = prv.PRVAccountant(
            [mechanism], max_self_compositions=[200], eps_error=0.01, delta_error=1e-10
        )
        low, _, high = accountant.compute_epsilon(delta=DELTA, num_self_compositions=[200])
    assert low <= epsilon_of([Release(1.0, 200)], poisson(0.05), DELTA) <= high


@pytest.mark.parametrize(("z", "expected"), [(1.0, 58.40), (2.0, 9.28), (4.0, 3.61)])
def test_a_fixed_cohort_is_accounted_for_one_client_replaced(z, expected):
    """The noise is relative to the sensitivity, which is twice the clipping norm then."""
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(z / 2))
    accountant.compose(event, 200)
    ours = epsilon_of([Release(z, 200)], FIXED, DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-9)
    assert ours == pytest.approx(expected, abs=0.005)


def test_z_passed_as_it_is_would_be_too_good_by_far():
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(1.0))
    accountant.compose(event, 200)
    assert accountant.get_epsilon(DELTA) == pytest.approx(9.28, abs=0.01)  # of no neighbours here
    assert epsilon_of([Release(1.0, 200)], FIXED, DELTA) > 6 * accountant.get_epsilon(DELTA)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return delta of Gaussian noise, by Balle and Wang's theorem 8."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def test_without_amplification_it_is_the_closed_form_and_the_smaller_bound_counts():
    chosen = Cohorts("chosen", 50, 1000)
    epsilon = epsilon_of([Release(8.0, 12)], chosen, DELTA)
    assert gaussian_delta(epsilon, math.sqrt(12) / 4) == pytest.approx(DELTA, rel=1e-6)
    nearly_all = Cohorts("fixed", 999, 1000)  # sampling gives next to nothing, the bound is loose
    assert epsilon_of([Release(8.0, 12)], nearly_all, DELTA) == pytest.approx(epsilon, abs=1e-12)
    everybody = epsilon_of([Release(8.0, 12)], poisson(1.0), DELTA)
    assert gaussian_delta(everybody, math.sqrt(12) / 8) == pytest.approx(DELTA, rel=1e-6)


def test_epsilon_grows_with_rounds_and_sampling_and_falls_with_noise():
    def of(z: float, rounds: int, cohorts: Cohorts) -> float:
        return epsilon_of([Release(z, rounds)], cohorts, DELTA, grid=2e-3)  # quick

    for cohorts in (poisson, lambda q: Cohorts("fixed", 1000 * q, 1000)):
        for by in (
            [of(2.0, rounds, cohorts(0.1)) for rounds in (0, 1, 5, 40)],
            [of(2.0, 20, cohorts(q)) for q in (0.02, 0.1, 0.3)],
            [of(z, 20, cohorts(0.1)) for z in (4.0, 2.0, 1.0)],
        ):
            assert all(a < b for a, b in itertools.pairwise(by))
    assert epsilon_of([], poisson(0.1), DELTA) == 0
    assert epsilon_of([Release(0.0, 1)], poisson(0.1), DELTA) == math.inf


@pytest.mark.parametrize(
    "cohorts",
    [poisson(1.0), Cohorts("chosen", 5, 9), pytest.param(poisson(0.1), marks=pytest.mark.slow)],
    ids=lambda cohorts: cohorts.kind,
)
def test_the_noise_for_a_budget_keeps_it_and_less_would_not(cohorts):
    z = calibrated_multiplier(2.0, 20, cohorts, DELTA)
    assert epsilon_of([Release(z, 20)], cohorts, DELTA) <= 2.0
    assert epsilon_of([Release(z - 0.003, 20)], cohorts, DELTA) > 2.0


def test_a_budget_that_no_noise_keeps_is_refused():
    with pytest.raises(ConfigError, match="cannot be kept for 10 rounds"):
        calibrated_multiplier(1e-6, 10, Cohorts("chosen", 5, 9), DELTA)


def test_a_ledger_survives_the_disk(tmp_path):
    ledger = Ledger((Release(0.1, 7), Release(1.25, 1)))
    ledger.write(tmp_path / "privacy.json", epsilon=1.0)
    assert Ledger.read(tmp_path / "privacy.json") == ledger
    assert Ledger.of_tensor(ledger.tensor()) == ledger
    (tmp_path / "torn.json").write_text('{"releases": [[1.0')
    for name in ("torn.json", "gone.json"):
        with pytest.raises(CheckpointError, match=f"{name}: the ledger"):
            Ledger.read(tmp_path / name)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[dp\]'"):
        epsilon_of([Release(1.0, 1)], FIXED, DELTA)
