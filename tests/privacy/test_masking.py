"""Pairwise masks: the sum of those who are left, and nothing to a server that cheats."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("cryptography", reason="needs the extra masks")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.algorithms.aggregation.secure_sum import decoded, encoded
from fedlightning.errors import EnvironmentFailure, FederationError
from fedlightning.privacy.masking import (
    MaskingClient,
    MaskingServer,
    reconstructed,
    shares_of,
)

CLIENTS, THRESHOLD, ROUND = (0, 1, 3, 4, 7), 3, b"run 1, round 5"
IDENTITIES = {client: Ed25519PrivateKey.generate() for client in CLIENTS}
KNOWN = {client: key.public_key() for client, key in IDENTITIES.items()}


def clients(bits: int = 32, threshold: int = THRESHOLD) -> dict[int, MaskingClient]:
    return {
        c: MaskingClient(c, ROUND, IDENTITIES[c], KNOWN, threshold, bits) for c in CLIENTS
    }  # fmt: skip


def sealed_by(members, adverts):
    """Return what each client gets from the others."""
    sent = {c: member.share(adverts) for c, member in members.items()}
    return {c: {d: boxes[c] for d, boxes in sent.items() if d != c} for c in members}


def masked_by(members, numbers, lost=()):
    adverts = [member.advertise() for member in members.values()]
    boxes = sealed_by(members, adverts)
    there = {c: m for c, m in members.items() if c not in lost}
    return adverts, {c: m.mask(numbers[c], boxes[c]) for c, m in there.items()}


def numbers_of(bits: int, count: int = 6) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {c: rng.integers(0, 2**bits, count, dtype=np.uint64) for c in CLIENTS}


def total_of(numbers, who, bits: int) -> list[int]:
    return [sum(int(numbers[c][at]) for c in who) % 2**bits for at in range(len(numbers[0]))]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("lost", [(), (3,), (0, 7)])
def test_the_server_reads_the_sum_of_those_who_are_left(bits, lost):
    members, numbers = clients(bits), numbers_of(bits)
    adverts, masked = masked_by(members, numbers, lost)
    left = [c for c in CLIENTS if c not in lost]
    revealed = [members[c].reveal(left, lost) for c in left][:THRESHOLD]
    total = MaskingServer(ROUND, THRESHOLD, bits).unmasked(adverts, masked, lost, revealed)
    assert total.tolist() == total_of(numbers, left, bits)


def test_it_carries_a_secure_sum_exactly():
    rule = SecureSum(limit=1.0, max_clients=8)
    generator = torch.Generator().manual_seed(0)
    changes = {c: torch.rand(7, generator=generator) - 0.5 for c in CLIENTS}
    plain = rule.start({"w": torch.zeros(7)}, ["w"])
    for change in changes.values():
        plain.push({"w": change}, 1.0)
    members = clients()
    adverts, masked = masked_by(members, {c: encoded(v, rule) for c, v in changes.items()})
    revealed = [member.reveal(CLIENTS, ()) for member in members.values()]
    total = MaskingServer(ROUND, THRESHOLD).unmasked(adverts, masked, (), revealed)
    mean = decoded(total, rule) / len(CLIENTS)
    assert torch.equal(mean.float(), plain.result()["w"])


def test_what_one_client_sends_looks_random_and_differs_each_round():
    zeros = {c: np.zeros(4000, np.uint64) for c in CLIENTS}
    _, one = masked_by(clients(), zeros)
    _, other = masked_by(clients(), zeros)
    for client in CLIENTS:
        assert stats.kstest(one[client] / 2**32, "uniform").pvalue > 1e-4
        assert not np.array_equal(one[client], other[client])
    part = sum(one[c].astype(object) for c in CLIENTS[:-1]) % 2**32  # all but one tell nothing
    assert stats.kstest(part.astype(float) / 2**32, "uniform").pvalue > 1e-4


def ready(lost=()):
    members = clients()
    masked_by(members, numbers_of(32), lost)
    return members


def test_a_client_that_is_called_present_and_gone_reveals_nothing():
    with pytest.raises(FederationError, match="client 3 is called both present and gone"):
        ready()[0].reveal(CLIENTS, (3,))


@pytest.mark.parametrize(
    ("answered", "gone", "reason"),
    [
        ((0, 1, 3), (4,), "are not those who began"),
        ((1, 3, 4), (0, 7), "are not those who began"),  # it has answered itself
        ((0, 1), (3, 4, 7), "only 2 clients have answered"),
        ((0, 1, 3, 4, 7, 9), (), "are not those who began"),
    ],
)
def test_lists_that_cannot_be_are_answered_with_nothing(answered, gone, reason):
    with pytest.raises(FederationError, match=reason):
        ready()[0].reveal(answered, gone)


def test_shares_are_revealed_once():
    member = ready()[0]
    member.reveal(CLIENTS, ())
    with pytest.raises(FederationError, match="revealed once a round"):
        member.reveal((0, 1, 3), (4, 7))


def test_keys_that_somebody_else_has_put_in_are_refused():
    """A server that stands between two clients cannot sign with their identities."""
    members = clients()
    adverts = [member.advertise() for member in members.values()]
    other = MaskingClient(3, ROUND, Ed25519PrivateKey.generate(), KNOWN, THRESHOLD)
    swapped = [other.advertise() if advert.client == 3 else advert for advert in adverts]
    with pytest.raises(FederationError, match="keys of client 3 are not signed by its identity"):
        members[0].share(swapped)
    old = MaskingClient(3, b"an older round", IDENTITIES[3], KNOWN, THRESHOLD).advertise()
    with pytest.raises(FederationError, match="not signed by its identity"):
        members[0].share([old if advert.client == 3 else advert for advert in adverts])
    with pytest.raises(FederationError, match="client 99 is not known"):
        members[0].share([*adverts[:-1], replace(adverts[-1], client=99)])
    with pytest.raises(FederationError, match="each client must be there once"):
        members[0].share([*adverts, adverts[1]])


def test_shares_that_were_changed_or_sent_to_another_are_refused():
    members = clients()
    boxes = sealed_by(members, [member.advertise() for member in members.values()])
    changed = {**boxes[0], 1: boxes[0][1][:-1] + bytes([boxes[0][1][-1] ^ 1])}
    with pytest.raises(FederationError, match="shares of client 1 were changed"):
        members[0].mask(np.zeros(2, np.uint64), changed)
    with pytest.raises(FederationError, match="shares of client 1 were changed"):
        members[0].mask(np.zeros(2, np.uint64), {**boxes[0], 1: boxes[3][1]})


def test_thresholds_below_half_or_out_of_reach_are_refused():
    for threshold in (2, 6):
        members = clients(threshold=threshold)
        adverts = [member.advertise() for member in members.values()]
        with pytest.raises(FederationError, match=f"a threshold of {threshold} among 5"):
            members[0].share(adverts)
    members = clients()
    adverts, masked = masked_by(members, numbers_of(32))
    few = [members[c].reveal(CLIENTS, ()) for c in (0, 1)]
    with pytest.raises(FederationError, match="2 clients have revealed shares, 3 are needed"):
        MaskingServer(ROUND, THRESHOLD).unmasked(adverts, masked, (), few)


def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not():
    secret = 2**255 - 19
    shares = shares_of(secret, CLIENTS, THRESHOLD)
    for chosen in itertools.combinations(CLIENTS, THRESHOLD):
        assert reconstructed({c: shares[c] for c in chosen}, THRESHOLD) == secret
    assert reconstructed({c: shares[c] for c in CLIENTS[:2]}, 2) != secret
    with pytest.raises(FederationError, match="2 shares of 3 needed"):
        reconstructed({c: shares[c] for c in CLIENTS[:2]}, THRESHOLD)


def test_without_the_package_the_extra_is_named(monkeypatch):
    module = "cryptography.hazmat.primitives.asymmetric.x25519"
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'fedlightning\[masks\]'"):
        clients()
