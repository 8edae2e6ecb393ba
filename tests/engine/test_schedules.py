"""Asynchronous and cyclic runs: trained, killed, resumed, with workers; what they leave."""

from __future__ import annotations

import csv
from functools import cache
from itertools import islice

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import (
    SCAFFOLD,
    AtomicCheckpointIO,
    FedAdam,
    FedAvg,
    FedBABU,
    FedPer,
    PersonalizationCallback,
)
from fedlightning.callbacks import RoundProgressBar
from fedlightning.core.seeding import Key
from fedlightning.errors import CheckpointError, DataError, FederationError
from fedlightning.federation import (
    Buffered,
    ConstantDelay,
    Cyclic,
    Exponential,
    LogNormal,
    Polynomial,
    Synchronous,
    Trace,
    Windows,
)
from tests.engine.test_resume import Stop, StopAt
from tests.toys import Net, data, fit, loop_of, net, same, sgd_by_hand, state

UNEVEN = Buffered(2, LogNormal([1.0, 1.0, 6.0, 1.0], 0.5, dropout=0.1), weighting=Polynomial(0.5))
WINDOWS = Buffered(2, Exponential(1.0, windows=Windows(0.4, 4.0)), max_staleness=2)
CYCLE = Cyclic("shuffled", ConstantDelay(1.0, dropout=0.2))
SCHEDULES = [
    pytest.param(UNEVEN, 1.0, id="uneven"),
    pytest.param(WINDOWS, 1.0, id="windows"),
    pytest.param(Buffered(1, Exponential(2.0)), 2, id="cohort"),
    pytest.param(Buffered(5, [0.2, 3.0, 3.0, 3.0]), 1.0, id="twice-in-a-commit"),
    pytest.param(CYCLE, 1.0, id="cyclic"),
]


def run(schedule, cohort=1.0, algorithm=None, rounds=6, **kwargs):
    module = net(dropout=0.3, lr_milestones=())
    built = fit(
        module, algorithm or FedAvg(), rounds=rounds, cohort=cohort,
        federation={"schedule": schedule}, **kwargs,
    )  # fmt: skip
    return built, state(module)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedBABU(), FedPer() + FedAdam(), SCAFFOLD()])
@pytest.mark.parametrize("cohort", [1.0, 3])
def test_equal_delays_and_a_full_buffer_are_synchronous_bit_for_bit(algorithm, cohort):
    size = 4 if cohort == 1.0 else cohort
    rounds, one = run(None, cohort, algorithm, rounds=4)
    queue, other = run(Buffered(size, 3.0), cohort, algorithm, rounds=4)
    assert same(one, other)
    assert all(map(same, kept(rounds), kept(queue)))


def test_delays_alone_change_no_bit_of_synchronous_rounds():
    _, plain = run(None)
    built, timed = run(Synchronous(LogNormal(2.0)))
    assert same(plain, timed)
    assert float(built.callback_metrics["time/simulated"]) > 0


@cache
def uninterrupted(schedule, cohort):
    """Return the model and what clients keep."""
    built, result = run(schedule, cohort, keeping(schedule), rounds=5)
    return result, kept(built)


def keeping(schedule):
    """Return an algorithm whose clients keep something, where the schedule lets them."""
    return FedAvg() if schedule is CYCLE else FedPer()  # optimizers travel: all must be shared


def kept(built):
    return [loop_of(built).client_store.get(client) or {} for client in range(4)]


@pytest.mark.parametrize(("schedule", "cohort"), SCHEDULES)
@pytest.mark.parametrize("event", ["on_client_end", "on_aggregate_end"])
@pytest.mark.parametrize(
    "round_", [1, 3, *(pytest.param(r, marks=pytest.mark.slow) for r in (0, 2, 4))]
)
def test_a_run_killed_between_any_two_events_resumes_to_the_same_bits(
    schedule, cohort, event, round_, tmp_path
):
    stop = StopAt(event, round_)
    with pytest.raises(Stop):
        run(schedule, cohort, keeping(schedule), rounds=5, folder=tmp_path, callbacks=[stop])
    saved = (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").exists()
    again, resumed = run(
        schedule,
        cohort,
        keeping(schedule),
        rounds=5,
        folder=tmp_path,
        ckpt="last" if saved else None,
    )
    result, of_clients = uninterrupted(schedule, cohort)
    assert same(resumed, result)
    assert all(map(same, kept(again), of_clients))


@pytest.mark.parametrize(("schedule", "cohort"), SCHEDULES)
def test_two_workers_give_the_same_bits(schedule, cohort):
    algorithm = keeping(schedule) + SCAFFOLD()
    _, one = run(schedule, cohort, algorithm)
    workers = {"devices": 2, "accelerator": "cpu", "strategy": "ddp_fork"}
    _, two = run(schedule, cohort, algorithm, **workers)
    assert same(one, two)


def test_a_stale_update_counts_by_its_weight():
    """By hand: x <- x + mean of (1 + staleness)^-a (y_i - x_version_i)."""
    schedule, sizes = Buffered(2, [1.0, 2.0, 5.0, 5.0], weighting=Polynomial(0.7)), (8, 6, 7, 5)
    module = net(momentum=0.0, lr_milestones=())
    built = fit(
        module, FedAvg(weights="uniform"), rounds=6, datamodule=data(sizes),
        federation={"schedule": schedule},
    )  # fmt: skip
    clients, by_hand = data(sizes), net(momentum=0.0, lr_milestones=())
    clients.setup("fit")
    versions, stalest = [state(by_hand)], 0
    for commit, (jobs, _) in zip(range(6), loop_of(built).plan(), strict=False):
        moves = []
        for job in jobs:
            by_hand.load_state_dict(versions[job.version])
            key = Key(0, "fit", job.stream, job.client).at(epoch=0)
            batches = clients.batches(job.client, "train", key=key, device=torch.device("cpu"))
            sgd_by_hand(by_hand, list(batches), lr=0.1, momentum=0.0)
            share = (1 + commit - job.version) ** -0.7
            stalest = max(stalest, commit - job.version)
            trained = state(by_hand)
            moves.append({k: share * (v - versions[job.version][k]) for k, v in trained.items()})
        versions.append({k: v + sum(m[k] for m in moves) / 2 for k, v in versions[-1].items()})
    assert stalest >= 2
    for key, value in state(module).items():
        torch.testing.assert_close(value, versions[-1][key], rtol=1e-5, atol=1e-6)


def test_a_cycle_of_two_clients_is_training_on_their_data_in_turn():
    sizes = (8, 6)
    module = net(momentum=0.0, lr_milestones=())
    fit(
        module, FedAvg(), rounds=4, datamodule=data(sizes), federation={"schedule": Cyclic()}
    )  # fmt: skip
    clients, by_hand = data(sizes), net(momentum=0.0, lr_milestones=())
    clients.setup("fit")
    for turn in range(4):
        key = Key(0, "fit", turn, turn % 2).at(epoch=0)
        batches = clients.batches(turn % 2, "train", key=key, device=torch.device("cpu"))
        sgd_by_hand(by_hand, list(batches), lr=0.1, momentum=0.0)
    for key, value in state(module).items():
        torch.testing.assert_close(value, state(by_hand)[key], rtol=1e-6, atol=1e-7)


LONG = [1.0 + client / 7 for client in range(200)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Buffered(2, LONG), Buffered(2, LONG, max_staleness=1)),  # all of a long text counts
        (Buffered(2, LONG), Buffered(2, [*LONG[:-1], 1.0])),
        (None, Buffered(2, 1.0)),
        (Cyclic(), Cyclic("shuffled")),
    ],
)
def test_a_run_does_not_go_on_under_another_schedule(before, after, tmp_path):
    run(before, rounds=1, folder=tmp_path)
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"federation\.schedule"):
        run(after, rounds=2, ckpt=saved)
    run(before, rounds=2, ckpt=saved)


def test_a_checkpoint_from_before_schedules_goes_on_in_rounds_only(tmp_path):
    run(None, rounds=1, folder=tmp_path)
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(saved, weights_only=True)
    extra = checkpoint["loops"]["fit_loop"]["state_dict"]["extra"]
    for name in [name for name in extra["settings"] if name.startswith("federation.schedule")]:
        del extra["settings"][name]
    del extra["schedule"], extra["versions"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, saved)
    with pytest.raises(CheckpointError, match=r"federation\.schedule: None -> Buffered"):
        run(Buffered(2, 1.0), rounds=2, ckpt=saved)
    _, resumed = run(None, rounds=2, ckpt=saved)
    assert same(resumed, run(None, rounds=2)[1])


def test_a_trace_may_be_named_from_elsewhere_and_must_stay_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "trace.csv"
    trace.write_text("client,seconds\n0,1\n1,3\n")
    schedule = Buffered(1, Trace("trace.csv"))
    built, _ = run(schedule, rounds=2, folder=tmp_path)
    assert loop_of(built).simulated_time == 1.0  # of clients 0 and 2, which takes the times of 0
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    trace.write_text("client,seconds\n0,2\n1,3\n")
    with pytest.raises(CheckpointError, match=r"federation\.schedule"):
        run(schedule, rounds=3, ckpt=saved)
    assert loop_of(run(schedule, rounds=2)[0]).simulated_time == 2.0
    monkeypatch.chdir("/")
    with pytest.raises(DataError, match=r"^/trace\.csv: this trace of delays cannot be read"):
        run(schedule, rounds=1)


def test_only_versions_that_updates_under_way_have_read_are_kept(tmp_path):
    run(Buffered(1, [1.0, 1.0, 1.0, 40.0]), rounds=30, folder=tmp_path)
    checkpoint = torch.load(
        tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True
    )
    extra = checkpoint["loops"]["fit_loop"]["state_dict"]["extra"]
    under_way = {entry[1] for entry in extra["schedule"]["pending"] if entry[1] >= 0}
    assert set(extra["versions"]) == under_way - {30}
    assert len(extra["versions"]) <= 4
    assert 0 in extra["versions"]


@pytest.mark.pictures
def test_a_timed_run_leaves_its_clock_and_its_timeline(tmp_path, capsys):
    run(UNEVEN, rounds=8, folder=tmp_path)
    folder = tmp_path / "lightning_logs/version_0"
    with (folder / "metrics.csv").open() as file:
        metrics = [row for row in csv.DictReader(file) if row["time/simulated"]]
    with (folder / "timeline.csv").open() as file:
        jobs = list(csv.DictReader(file))
    assert len(metrics) == 8
    for row in metrics:
        of_round = [job for job in jobs if job["round"] == row["round"]]
        stale = [int(job["staleness"]) for job in of_round]
        assert len(of_round) == 2
        last = max(float(job["arrival"]) for job in of_round)
        assert float(row["time/simulated"]) == pytest.approx(last)
        assert float(row["staleness/mean"]) == sum(stale) / 2
        assert float(row["staleness/max"]) == max(stale)
        work = sum(float(job["arrival"]) - float(job["start"]) for job in of_round)
        assert float(row["time/work"]) == pytest.approx(work)
    assert (folder / "timeline.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert (
        f"{float(metrics[-1]['time/simulated']):,.1f} simulated seconds · 2 updates a round" in out
    )
    assert "timeline.png" in out


def test_rounds_without_a_clock_leave_none(tmp_path):
    run(None, rounds=1, folder=tmp_path)
    folder = tmp_path / "lightning_logs/version_0"
    assert "time/" not in (folder / "metrics.csv").read_text()
    assert not (folder / "timeline.csv").exists()


def test_a_round_in_which_too_few_arrive_ends_the_run_and_says_why():
    with pytest.raises(FederationError, match=r"round 0: 0 of 4 updates arrive \(4 late\).*dead"):
        run(Synchronous([5.0], deadline=1.0))
    slow = Synchronous([1.0, 5.0, 5.0, 5.0], deadline=2.0)
    with pytest.raises(FederationError, match=r"1 of 4 updates arrive \(3 late\).*min_clients=2"):
        fit(net(), FedAvg(), federation={"schedule": slow, "min_clients": 2})
    built, _ = run(slow, rounds=2)
    assert float(built.callback_metrics["schedule/late"]) == 3


class Seen(pl.Callback):
    """Notes how many batches a round is said to have at its start, and those that it has."""

    def __init__(self):
        self.said, self.batches, self.bar = [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.said.append(trainer.num_training_batches)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch.client, trainer.is_last_batch))
        self.bar.append(trainer.progress_bar_callback.train_progress_bar.n)


LATE = Synchronous(ConstantDelay(1.0, windows=Windows(0.5, 10.0)), deadline=4.0)


def test_callbacks_and_the_bar_know_how_many_clients_a_round_has(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    seen = Seen()
    built = fit(
        net(), FedAvg(), rounds=8, federation={"schedule": LATE},
        callbacks=[RoundProgressBar(), seen], enable_progress_bar=True,
    )  # fmt: skip
    jobs = [[job.client for job in jobs] for jobs, _ in islice(loop_of(built).plan(), 8)]
    counts = [len(of_round) for of_round in jobs]
    assert len(set(counts)) > 1
    assert seen.said == counts
    assert seen.batches == [
        (round_, client, place + 1 == len(of_round))
        for round_, of_round in enumerate(jobs) for place, client in enumerate(of_round)
    ]  # fmt: skip
    assert seen.bar == sorted(seen.bar)
    bar = built.progress_bar_callback.train_progress_bar
    assert bar.n == bar.total


def test_a_client_that_fails_is_skipped_and_the_clock_goes_on():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) == 1:  # the last batch of the client with five examples
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    module = net(module=Broken, lr_milestones=())
    with pytest.warns(UserWarning, match="skipped"):
        built = fit(
            module, FedAvg(), rounds=6, datamodule=data((8, 8, 8, 5)),
            federation={"schedule": Buffered(2, 1.0), "on_client_failure": "skip"},
        )  # fmt: skip
    assert loop_of(built).simulated_time == 3.0


class OneIsBroken(Net):
    """Fails for the client with five examples, whose last batch has one."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) == 1:
            raise RuntimeError("broken")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("schedule", [Buffered(1, 1.0), Cyclic()])
def test_without_its_only_update_a_commit_leaves_the_model_as_it_is(schedule):
    """Clients 0 to 3 take turns, and client 3 fails: turn 3 is as if it had not been."""

    def after(turns, **workers):
        module = net(module=OneIsBroken, lr_milestones=())
        fit(
            module, FedAvg(), rounds=turns, datamodule=data((8, 8, 8, 5)),
            federation={"schedule": schedule, "on_client_failure": "skip"}, **workers,
        )  # fmt: skip
        return state(module)

    forked = {"devices": 2, "accelerator": "cpu", "strategy": "ddp_fork"}
    with pytest.warns(UserWarning, match="client 3, round 3: RuntimeError: broken"):
        fourth, fifth, workers = after(4), after(5), after(5, **forked)
    assert same(fourth, after(3))
    assert not same(fifth, fourth)
    assert same(fifth, workers)


def test_personalization_and_validation_go_with_any_schedule():
    for schedule in (UNEVEN, CYCLE):
        built, _ = run(schedule, rounds=4, callbacks=[PersonalizationCallback(epochs=1)])
        assert float(built.callback_metrics["personalized/acc"]) >= 0
