"""A schedule plans; the engine executes: a buffered one trains, resumes and weighs by staleness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import FedAvg, Federation
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError, FederationError
from fedlightning.federation.schedule import (
    Job,
    Population,
    Schedule,
    ScheduleState,
    Synchronous,
)
from tests.engine.test_resume import Stop, StopAt
from tests.toys import CLASSES, data, examples, fit, loop_of, net, same, state


class ByQueue(Schedule):
    """The next arrivals of an event queue make a commit; each client starts again at once."""

    def __init__(self, buffer: int = 3) -> None:
        self.buffer = buffer

    def start(self, population: Population) -> ScheduleState:
        jobs = [self.dispatch(client, 0, 0.0, 0) for client in population.clients]
        return ScheduleState(pending=tuple(jobs))

    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        queue = sorted(state.pending, key=lambda job: (job.time, job.client))
        done, commit = queue[: self.buffer], state.commit + 1
        jobs = [
            Job(job.client, job.version, position, job.time, job.dispatch)
            for position, job in enumerate(done)
        ]
        again = [self.dispatch(j.client, commit, j.time, (j.dispatch or 0) + 1) for j in done]
        return jobs, ScheduleState(commit, done[-1].time, (*queue[self.buffer :], *again))

    def dispatch(self, client: int, version: int, now: float, number: int) -> Job:
        slow = 5.0 if client == 1 else 1.0
        delay = slow * float(Key(0, "cohort", number, client).numpy().exponential())
        return Job(client, version, client, now + delay, number)

    def jobs_per_commit(self, population: Population) -> int:
        return self.buffer


class Stale(FedAvg):
    """Weighs an update by one over one plus its staleness; notes what it sees."""

    seen: list[tuple[int, int]] = []  # noqa: RUF012

    def weight(self, update: ClientUpdate) -> float:
        Stale.seen.append((update.client, update.staleness))
        return 1.0 / (1 + update.staleness)


def run(rounds: int = 6, algorithm: Any = None, **kwargs: Any) -> Any:
    module = net(dropout=0.3, lr_milestones=())
    built = fit(
        module, algorithm or FedAvg(), rounds=rounds,
        **{"federation": {"schedule": ByQueue()}, **kwargs},
    )  # fmt: skip
    return built, state(module)


def plan(rounds: int) -> list[list[Job]]:
    """Return the commits of the schedule, planned without training anybody."""
    population = Population(0, range(4), 4, cohort=lambda commit: (), num_examples=len)
    schedule, commits = ByQueue(), []
    after = schedule.start(population)
    for _ in range(rounds):
        jobs, after = schedule.next(after, population)
        commits.append(list(jobs))
    return commits


def test_the_plan_needs_no_training_and_has_stale_updates():
    commits = plan(6)
    assert commits == plan(6)
    assert [len(jobs) for jobs in commits] == [3] * 6
    assert max(commit - job.version for commit, jobs in enumerate(commits) for job in jobs) >= 1


def test_staleness_reaches_the_weight():
    Stale.seen.clear()
    run(algorithm=Stale())
    planned = [
        (job.client, commit - job.version) for commit, jobs in enumerate(plan(6)) for job in jobs
    ]
    asked = list(Stale.seen)
    # asked twice per update: where the client's work is checked, with nothing known of staleness
    # yet, and where it is merged
    assert [entry for entry in planned if entry[1]] == [entry for entry in asked if entry[1]]
    assert len(asked) == 2 * len(planned)


def test_a_stale_update_moves_the_newest_model_by_what_it_has_changed(tmp_path):
    """By hand: x <- x + mean of (y_i - x_version_i), each y_i trained from its own version."""
    from tests.toys import sgd_by_hand

    sizes = (8, 6, 7, 5)
    module = net(momentum=0.0, lr_milestones=())
    fit(
        module, FedAvg(weights="uniform"), rounds=4,
        federation={"schedule": ByQueue()}, datamodule=data(sizes),
    )  # fmt: skip

    clients, by_hand = data(sizes), net(momentum=0.0, lr_milestones=())
    clients.setup("fit")
    versions = [state(by_hand)]
    for commit, jobs in enumerate(plan(4)):
        moves = []
        for job in jobs:
            by_hand.load_state_dict(versions[job.version])
            key = Key(0, "fit", job.stream, job.client).at(epoch=0)
            batches = list(
                clients.batches(job.client, "train", key=key, device=torch.device("cpu"))
            )
            sgd_by_hand(by_hand, batches, lr=0.1, momentum=0.0)
            moves.append({k: v - versions[job.version][k] for k, v in state(by_hand).items()})
        newest = versions[commit]
        versions.append({k: v + sum(m[k] for m in moves) / 3 for k, v in newest.items()})
    for key, value in state(module).items():
        torch.testing.assert_close(value, versions[-1][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event", ["on_client_end", "on_train_batch_end", "on_aggregate_end"])
@pytest.mark.parametrize("round_", [1, 3])
def test_a_killed_run_resumes_to_the_same_bits(event, round_, tmp_path):
    _, whole = run()
    module = net(dropout=0.3, lr_milestones=())
    federation = {"schedule": ByQueue()}
    with pytest.raises(Stop):
        fit(
            module, FedAvg(), rounds=6, folder=tmp_path, federation=federation,
            callbacks=[StopAt(event, round_, client=1 if event != "on_aggregate_end" else 0)],
        )  # fmt: skip
    again = net(dropout=0.3, lr_milestones=())
    fit(again, FedAvg(), rounds=6, folder=tmp_path, federation=federation, ckpt="last")
    assert same(state(again), whole)


def test_two_workers_give_the_same_bits(tmp_path):
    _, one = run()
    module = net(dropout=0.3, lr_milestones=())
    fit(
        module, FedAvg(), rounds=6, devices=2, accelerator="cpu", strategy="ddp_fork",
        federation={"schedule": ByQueue()},
    )  # fmt: skip
    assert same(state(module), one)


def test_as_many_versions_are_kept_as_updates_under_way_refer_to(tmp_path):
    run(folder=tmp_path)
    checkpoint = torch.load(
        tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True
    )
    extra = checkpoint["loops"]["fit_loop"]["state_dict"]["extra"]
    pending = {entry[1] for entry in extra["schedule"]["pending"]}
    newest = extra["schedule"]["commit"]
    assert newest == 6
    assert set(extra["versions"]) == pending - {newest}
    assert len(extra["versions"]) < 4


def test_equal_delays_and_a_full_buffer_are_synchronous_rounds():
    class Lockstep(ByQueue):
        def dispatch(self, client, version, now, number):
            return Job(client, version, client, now + 1.0, version)

    by_queue, rounds = net(dropout=0.3), net(dropout=0.3)
    fit(by_queue, FedAvg(), rounds=3, federation={"schedule": Lockstep(buffer=4)})
    order = Federation(sampler=None)
    assert order.schedule is None

    class InOrder(Synchronous):
        def next(self, state, population):
            jobs = [Job(c, state.commit, c) for c in population.clients]
            return jobs, ScheduleState(state.commit + 1)

    fit(rounds, FedAvg(), rounds=3, federation={"schedule": InOrder()})
    assert same(state(by_queue), state(rounds))


def test_a_version_that_is_gone_is_named():
    class Forgets(ByQueue):
        def next(self, state, population):
            jobs, after = super().next(state, population)
            late = [Job(job.client, max(0, job.version - 2), p) for p, job in enumerate(jobs)]
            return late, after

    with pytest.raises(FederationError, match=r"version \d+ of the global model is gone"):
        fit(net(), FedAvg(), rounds=6, federation={"schedule": Forgets(buffer=4)})


def test_a_schedule_must_be_one():
    with pytest.raises(
        ConfigError, match=r"federation\.schedule must be an instance of Schedule, got 'B"
    ):
        Federation(schedule="Buffered")  # type: ignore[arg-type]


def test_a_client_that_trains_twice_before_a_commit_draws_anew_and_keeps_both():
    """Two updates of one client in one commit: the second continues with what the first kept."""

    class Twice(Schedule):
        def next(self, state, population):
            jobs = [Job(0, state.commit, 0, dispatch=0), Job(0, state.commit, 1, dispatch=1)]
            return jobs, ScheduleState(state.commit + 1)

        def jobs_per_commit(self, population):
            return 2

    starts: list[torch.Tensor] = []
    orders: list[torch.Tensor] = []

    class Look(pl.Callback):
        def on_client_end(self, trainer, module, update):
            starts.append(module.head.weight.detach().clone())

    from fedlightning import FedPer
    from tests.toys import Net

    class Seen(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 0:
                orders.append(batch[0].clone())

    module = net(module=Seen, lr_milestones=())
    built = fit(module, FedPer(), rounds=1, federation={"schedule": Twice()}, callbacks=[Look()])
    assert not torch.equal(orders[0], orders[1])
    kept = loop_of(built).client_store.get(0)
    assert torch.equal(kept["head.weight"], starts[1])
    assert not torch.equal(starts[0], starts[1])


def test_a_million_clients_are_planned_at_no_cost():
    rows = examples(2, 0)
    few = ClientDatasets([rows] * 2, [rows] * 2, num_classes=CLASSES)
    assert few.num_clients == 2
    population = Population(0, range(1_000_000), 10, cohort=lambda c: (c, c + 1), num_examples=len)
    jobs, after = Synchronous().next(ScheduleState(commit=7), population)
    assert [job.client for job in jobs] == [7, 8]
    assert after.pending == ()


def test_a_run_is_not_resumed_with_another_schedule(tmp_path):
    run(rounds=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"federation\.schedule: ByQueue\(buffer=3\) ->"):
        fit(net(dropout=0.3, lr_milestones=()), FedAvg(), rounds=2, folder=tmp_path, ckpt="last")
