"""Differential privacy in whole runs: what is shared, what is kept, the ledger, the budget."""

from __future__ import annotations

import csv
import json
import math
import re
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("dp_accounting", reason="needs the extra dp")

from fedlightning import (
    SCAFFOLD,
    AdaptiveClipping,
    Algorithm,
    ClientDP,
    FedAdam,
    FedAvg,
    FedBABU,
    FedBN,
    Federation,
    FedNova,
    FedPer,
    FedProto,
    PoissonSampler,
    ServerData,
)
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.algorithms.fedamp import FedAMP
from fedlightning.engine.private_rounds import BudgetSpent
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.federation import Buffered, Cyclic, Synchronous
from fedlightning.privacy import Cohorts, Ledger, Release, epsilon_of
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint
from tests.engine.test_resume import Stop, StopAt
from tests.toys import data, loop_of, net, same, state, trainer

pytestmark = pytest.mark.filterwarnings("ignore:federation.privacy:UserWarning")

SIZES = (8, 6, 7, 6, 6, 10)
Q = 0.5
EXPECTED = Q * len(SIZES)


def private(algorithm=None, rounds=3, folder=None, devices=1, callbacks=None, **settings):
    """Return a trainer with Poisson sampling and privacy."""
    privacy = {"noise_multiplier": 1.0, "max_norm": 0.3, **settings.pop("privacy", {})}
    federation = {
        "sampler": PoissonSampler(Q), "seed": 3, "privacy": ClientDP(**privacy), **settings,
    }  # fmt: skip
    cohort = federation.pop("cohort_size", None)
    several = {"devices": devices, "accelerator": "cpu", "strategy": "ddp_fork"}
    return trainer(
        algorithm or FedBABU(), rounds, cohort, folder, federation, callbacks=callbacks or [],
        **(several if devices > 1 else {}),
    )  # fmt: skip


def fitted(*args, module=None, ckpt=None, **settings):
    module = module if module is not None else net(dropout=0.3)
    built = private(*args, **settings)
    built.fit(module, datamodule=data(SIZES), ckpt_path=ckpt)
    return built, module


class Kept(pl.Callback):
    """Notes what clients keep and the global model, round by round."""

    def __init__(self):
        self.kept, self.model, self.cohorts = [], [], []

    def on_aggregate_end(self, trainer, module):
        store = loop_of(trainer).client_store
        self.kept.append({f"{c}/{k}": v.clone() for c in store for k, v in store.get(c).items()})
        self.model.append(state(module))
        self.cohorts.append([job.client for job in loop_of(trainer).jobs])


def columns(folder):
    (path,) = folder.rglob("metrics.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


# -- what is covered -------------------------------------------------------------------------------


def test_what_is_kept_has_the_same_bytes_as_without_privacy():
    """At z = 0 and a norm that clips nobody a cohort of one is that client's model, exactly."""
    seen = []
    for privacy in (None, ClientDP(noise_multiplier=0.0, max_norm=1e6)):
        look = Kept()
        built = trainer(
            FedPer(weights="uniform"), 3, 1, federation={"seed": 3, "privacy": privacy},
            callbacks=[look],
        )  # fmt: skip
        built.fit(net(dropout=0.3), datamodule=data(SIZES))
        seen.append(look)
    for without, within in zip(*(look.kept for look in seen), strict=True):
        assert without
        assert same(without, within)
    assert all(same(*pair) for pair in zip(*(look.model for look in seen), strict=True))


def test_the_head_that_nobody_trains_gets_no_noise_and_the_body_does():
    _, module = fitted(Algorithm(train="body", share="full", weights="uniform"))
    fresh = net(dropout=0.3)
    for key, value in state(module).items():
        assert torch.equal(value, state(fresh)[key]) == key.startswith("head")


def test_a_tensor_that_is_added_to_the_model_moves_by_no_more_than_the_norm():
    """And the model without the client is that of a cohort without it, noise included."""
    look = Kept()

    class Canary(type(net())):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.body.register_parameter("canary", torch.nn.Parameter(torch.zeros(5)))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) - 1e4 * self.body.canary.sum()

    fitted(
        module=net(module=Canary), callbacks=[look], rounds=1, sampler=None, cohort_size=2,
        privacy={"noise_multiplier": 0.0},
    )  # fmt: skip
    assert float(look.model[0]["body.canary"].abs().max()) > 0.1
    assert float(look.model[0]["body.canary"].norm()) <= 0.3 + 1e-6  # two clients, C = 0.3, m = 2


def test_an_empty_round_releases_noise_of_the_right_size():
    class Nobody(PoissonSampler):
        def cohort(self, key, population, size):
            return ()

    start = net()
    before = state(start)
    built, _ = fitted(
        SCAFFOLD(), 1, module=start, sampler=Nobody(Q), privacy={"noise_multiplier": 2.0}
    )
    moved = torch.cat([(v - before[k]).reshape(-1) for k, v in state(start).items()]).double()
    server = loop_of(built).server.state_dict()
    extras = torch.cat([v.reshape(-1) for k, v in server.items() if k.startswith("scaffold/")])
    assert float(moved.std()) == pytest.approx(2.0 * 0.3 / EXPECTED, rel=0.3)
    # SCAFFOLD's server takes a share m / N of the mean of what clients send
    ratio = float(extras.double().std() / moved.std())
    assert ratio == pytest.approx(built.federated_loop.clients_per_round() / len(SIZES), rel=0.35)


def test_noise_has_the_deviation_that_the_settings_say():
    class Wide(type(net())):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.body.register_parameter("wide", torch.nn.Parameter(torch.zeros(200_000)))

    look = Kept()
    fitted(module=net(module=Wide), callbacks=[look], rounds=2, privacy={"noise_multiplier": 1.5})
    std = 1.5 * 0.3 / EXPECTED
    first = look.model[0]["body.wide"].double()
    second = look.model[1]["body.wide"].double() - first
    for noise in (first, second):
        assert float(noise.std()) == pytest.approx(std, rel=0.01)
        assert abs(float(noise.mean())) < 4 * std / math.sqrt(200_000)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01


@pytest.mark.parametrize("algorithm", [FedPer(), SCAFFOLD(), FedAdam(weights="uniform")])
def test_workers_agree_to_the_bit(algorithm, tmp_path):
    clip = {"max_norm": AdaptiveClipping(initial=0.3, bit_noise=1.0)}
    _, first = fitted(algorithm, folder=tmp_path / "1", privacy=clip)
    _, second = fitted(algorithm, folder=tmp_path / "2", privacy=clip, devices=2)
    assert same(state(first), state(second))
    one, two = (
        loop_state(read_checkpoint(next((tmp_path / name).rglob("last.ckpt"))))["extra"]["server"]
        for name in "12"
    )
    assert len(one) >= 2
    assert same(one, two)


# -- the ledger ------------------------------------------------------------------------------------


def test_epsilon_is_logged_each_round_written_and_printed(tmp_path, capsys):
    fitted(folder=tmp_path)
    cohorts = Cohorts("poisson", EXPECTED, len(SIZES), q=Q)
    expected = [epsilon_of([Release(1.0, n)], cohorts, 1e-5) for n in (1, 2, 3)]
    logged = [float(row["privacy/epsilon"]) for row in columns(tmp_path)]
    assert logged == pytest.approx(expected, rel=1e-6)
    assert all(shown >= exact for shown, exact in zip(logged, expected, strict=True))
    (path,) = tmp_path.rglob("privacy.json")
    facts = json.loads(path.read_text())
    assert facts["epsilon"] == pytest.approx(expected[-1], abs=1e-9)
    assert facts["rounds"] == 3
    printed = capsys.readouterr().out
    assert f"privacy: epsilon = {expected[-1]:.4g} at delta = 1e-05" in printed
    assert "who knows the seed knows the noise" in printed
    assert re.search(r"not covered: metrics,\s+losses", printed)


def test_under_fast_dev_run_cohorts_are_cut_and_nothing_is_promised(capsys, caplog):
    federation = {"sampler": PoissonSampler(1.0), "privacy": ClientDP(noise_multiplier=1.0)}
    built = trainer(FedBABU(), 1, None, None, federation, fast_dev_run=2)
    with caplog.at_level("INFO", "pytorch_lightning"):
        built.fit(net(), datamodule=data(SIZES))
    assert len(built.federated_loop.jobs) == 2  # of six
    assert "privacy/epsilon" not in built.callback_metrics
    said = [record.message for record in caplog.records if "privacy" in record.message]
    assert said == ["privacy: nothing is promised under fast_dev_run, which cuts cohorts"]
    assert built.federated_loop.private.summary({}) == tuple(said)
    assert "epsilon" not in capsys.readouterr().out


def test_a_run_killed_twenty_times_is_the_uninterrupted_one(tmp_path):
    """At changing places of a round; noise, model and ledger are those of one run."""
    rounds, clip = 6, {"max_norm": AdaptiveClipping(initial=0.3, bit_noise=1.0)}
    whole, expected = fitted(rounds=rounds, privacy=clip)
    hooks = ["on_aggregate_end", "on_train_batch_end", "on_train_epoch_end", "on_train_epoch_start"]
    kills, ckpt = 0, None
    while kills < 20:
        at = min(kills // 3, rounds - 1)
        built = private(
            rounds=rounds, folder=tmp_path, privacy=clip, callbacks=[StopAt(hooks[kills % 4], at)]
        )
        with suppress(Stop):
            built.fit(net(dropout=0.3), datamodule=data(SIZES), ckpt_path=ckpt)
        kills += 1
        ckpt = "last" if list(tmp_path.rglob("last.ckpt")) else None
    last, module = fitted(rounds=rounds, folder=tmp_path, privacy=clip, ckpt="last")
    assert same(state(module), state(expected))
    assert same(last.federated_loop.server.state_dict(), whole.federated_loop.server.state_dict())
    ledger = Ledger.of_tensor(last.federated_loop.server.private_state["ledger"])
    assert ledger.releases == (Release(1.0, rounds),)


def test_a_resume_that_would_drop_the_ledger_is_refused(tmp_path):
    fitted(folder=tmp_path)
    without = trainer(
        FedBABU(), 4, None, tmp_path, {"sampler": PoissonSampler(Q), "seed": 3}
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"federation\.privacy: ClientDP.* -> None"):
        without.fit(net(dropout=0.3), datamodule=data(SIZES), ckpt_path="last")
    weaker = private(rounds=4, folder=tmp_path, privacy={"noise_multiplier": 0.5})
    with pytest.raises(CheckpointError, match=r"federation\.privacy: ClientDP"):
        weaker.fit(net(dropout=0.3), datamodule=data(SIZES), ckpt_path="last")


def test_rounds_made_without_privacy_cannot_be_continued_with_it():
    built = private(rounds=4)
    federation = built.federated_loop.federation
    object.__setattr__(federation, "privacy", None)
    built.callbacks.append(StopAt("on_train_epoch_start", 2))
    with pytest.raises(Stop):
        built.fit(net(), datamodule=data(SIZES))
    object.__setattr__(federation, "privacy", ClientDP(noise_multiplier=1.0))
    built.callbacks.pop()
    with pytest.raises(CheckpointError, match="the first 2 rounds were made without it"):
        built.fit(net(), datamodule=data(SIZES))


SECURE = {"privacy": {"secure": True}, "on_client_failure": "skip"}


def test_secure_noise_is_never_the_same_and_its_ledger_is_written_first(tmp_path):
    """A round that was released and lost in a crash is released again, and counts twice."""
    models = []
    for name in ("one", "other"):
        crash = StopAt("on_aggregate_end", 1)  # the noise is drawn, no checkpoint has the round
        built = private(rounds=3, folder=tmp_path / name, callbacks=[crash], **SECURE)
        with pytest.raises(Stop):
            built.fit(net(), datamodule=data(SIZES))
        (path,) = (tmp_path / name).rglob("privacy.json")
        assert Ledger.read(path).rounds == 2
        saved = read_checkpoint(next((tmp_path / name).rglob("last.ckpt")))
        assert "privacy" in str(saved["loops"])
        last, module = fitted(rounds=3, folder=tmp_path / name, module=net(), ckpt="last", **SECURE)
        models.append(state(module))
        ledger = Ledger.of_tensor(last.federated_loop.server.private_state["ledger"])
        assert ledger.rounds == 4
        assert Ledger.read(path).rounds == 4
    assert not same(*models)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"privacy\.json: the ledger"):
        fitted(rounds=4, folder=tmp_path / "other", module=net(), ckpt="last", **SECURE)


def test_secure_cohorts_do_not_follow_from_the_seed(tmp_path):
    drawn = []
    for name in ("a", "b"):
        look = Kept()
        fitted(rounds=6, folder=tmp_path / name, callbacks=[look], **SECURE)
        drawn.append(look.cohorts)
    assert drawn[0] != drawn[1]


def test_a_secure_round_that_is_run_again_draws_its_cohort_again(tmp_path):
    """The ledger adds two independent rounds up; two releases of one cohort would cost more."""
    drawn = []
    for _ in range(6):  # all the same with probability 2**-30
        look, crash = Kept(), StopAt("on_train_epoch_end", 1)
        ckpt = "last" if drawn else None
        if not drawn:
            built = private(rounds=2, folder=tmp_path, callbacks=[crash], **SECURE)
            with pytest.raises(Stop):
                built.fit(net(), datamodule=data(SIZES))
            (saved,) = tmp_path.rglob("last.ckpt")
            before = saved.read_bytes()
            ckpt = "last"
        saved.write_bytes(before)
        fitted(rounds=2, folder=tmp_path, module=net(), callbacks=[look], ckpt=ckpt, **SECURE)
        drawn.append(sorted(look.cohorts[-1]))
    assert len({*map(tuple, drawn)}) > 1
    (path,) = tmp_path.rglob("privacy.json")
    assert Ledger.read(path).rounds == 8


def test_secure_noise_needs_a_place_for_its_ledger_and_clients_that_may_fail():
    with pytest.raises(ConfigError, match=r"secure: what was released is written down in the run"):
        fitted(**SECURE)
    with pytest.raises(ConfigError, match=r"under federation\.on_client_failure=fail"):
        private(privacy={"secure": True})


# -- the budget ------------------------------------------------------------------------------------


def test_the_run_ends_before_the_round_that_would_exceed_the_budget(tmp_path):
    cohorts = Cohorts("poisson", EXPECTED, len(SIZES), q=Q)
    two, three = (epsilon_of([Release(2.0, n)], cohorts, 1e-5) for n in (2, 3))
    budget = {"noise_multiplier": 2.0, "target_epsilon": (two + three) / 2}
    with pytest.raises(BudgetSpent, match=r"round 2 would take epsilon from .*; 2 rounds are") as e:
        fitted(rounds=9, folder=tmp_path, privacy=budget)
    assert e.value.exit_code == 5
    assert [row["round"] for row in columns(tmp_path)] == ["0", "1"]
    with pytest.raises(BudgetSpent):  # nor after a resume
        fitted(rounds=9, folder=tmp_path, privacy=budget, ckpt="last")


def test_a_budget_alone_determines_the_noise_for_all_rounds(tmp_path):
    budget = {"noise_multiplier": None, "target_epsilon": 4.0}
    built, _ = fitted(rounds=3, folder=tmp_path, privacy=budget)
    spent = float(columns(tmp_path)[-1]["privacy/epsilon"])
    assert 3.97 < spent <= 4.0
    with pytest.raises(BudgetSpent):  # more rounds need more noise from the start
        fitted(rounds=4, folder=tmp_path, privacy=budget, ckpt="last")
    with pytest.raises(ConfigError, match="is a budget for the whole run; set"):
        fitted(rounds=-1, privacy=budget)
    assert built.federated_loop.private.multiplier > 1


def test_who_takes_fixed_cohorts_is_told_both_numbers(capsys, tmp_path):
    fixed = epsilon_of([Release(1.0, 2)], Cohorts("fixed", 3, 6), 1e-5)
    poisson = epsilon_of([Release(1.0, 2)], Cohorts("poisson", 3, 6, q=0.5), 1e-5)
    assert fixed > 2 * poisson
    told = rf"epsilon = {fixed:.4g} \(replace one client\).*PoissonSampler\(q=0\.5\).*{poisson:.4g}"
    with pytest.warns(UserWarning, match=told):
        fitted(rounds=2, folder=tmp_path, sampler=None, cohort_size=3)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"privacy: epsilon = {fixed:.4g} at" in printed
    assert f"with PoissonSampler(q=0.5): epsilon = {poisson:.4g}" in printed


def test_a_delta_that_gives_a_client_away_is_warned_of():
    with pytest.warns(UserWarning, match="delta=0.2 lets one of 6 clients be given away"):
        fitted(privacy={"delta": 0.2})


def test_adaptive_clipping_moves_the_norm_and_says_so(tmp_path):
    fitted(folder=tmp_path, privacy={"max_norm": AdaptiveClipping(initial=50.0, bit_noise=2.0)})
    norms = [float(row["privacy/max_norm"]) for row in columns(tmp_path)]
    assert len(set(norms)) == 3
    quiet = {"noise_multiplier": 0.0, "max_norm": AdaptiveClipping(initial=50.0)}
    fitted(folder=tmp_path / "quiet", rounds=5, privacy=quiet)
    norms = [float(row["privacy/max_norm"]) for row in columns(tmp_path / "quiet")]
    assert norms[-1] < norms[0] <= 50.0  # nobody moves as far: the norm falls


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"algorithm": FedAvg(weights="examples")}, "weighs clients by their examples"),
        ({"algorithm": FedNova()}, r"FedNova has its own \w+\(\)"),
        ({"algorithm": FedAMP()}, "FedAMP|looks at every client's update|has its own"),
        ({"algorithm": FedProto()}, "FedProto|merges by|sensitivity"),
        ({"algorithm": FedBABU() + ServerData(0.1)}, "trains on copies of clients' examples"),
        ({"algorithm": Algorithm(share="none")}, "shares nothing"),
        ({"aggregator": CoordinateMedian()}, "its sensitivity"),
        ({"schedule": Cyclic()}, "no theorem about sampling holds"),
        ({"schedule": Buffered(buffer=2, delays=1.0), "sampler": None, "cohort_size": 3}, "no the"),
        (
            {"schedule": Synchronous(1.0, over_selection=2), "sampler": None, "cohort_size": 2},
            "another one's place",
        ),
        ({"clients_per_kernel": 2}, "moves the last bits of the others"),
        ({"min_clients": 2}, "which their data decides"),
        ({"privacy": {"delta": 0.0}}, r"delta must be in \(0, 1\)"),
        ({"privacy": {"max_norm": -1.0}}, "max_norm must be a finite number > 0, or Adaptive"),
        ({"privacy": {"noise_multiplier": -0.1}}, "noise_multiplier must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_private_is_refused_with_the_reason(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        private(**settings)


def test_shared_statistics_of_batchnorm_are_refused_and_the_ways_out_taken():
    with pytest.raises(ConfigError, match=r"body\.1\.running_mean is shared and is a buffer"):
        fitted(module=net(norm=True))
    fitted(module=net(norm=True), buffers="local")
    fitted(FedBABU() + FedBN(), module=net(norm=True))


def test_what_is_unfrozen_in_the_middle_is_refused():
    class Thaw(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                module.body[0].bias.requires_grad_(True)

    module = net()
    module.body[0].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"body\.0\.bias is shared from this round on"):
        fitted(FedAvg(), module=module, callbacks=[Thaw()])


def test_the_setting_must_be_one():
    with pytest.raises(ConfigError, match=r"federation\.privacy must be an instance of ClientDP"):
        Federation(privacy="ClientDP")
