"""PersA-FL on a clock: the order of arrivals, equal durations, one client less, a killed run."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import Buffered, PersAFL, Synchronous
from fedlightning.federation import Exponential
from tests.algorithms.cases import Faulty
from tests.algorithms.quadratics import Quadratic, scalars
from tests.engine.test_resume import Stop, StopAt
from tests.toys import Net, data, fit, net, same, state

OPTIONS = {
    "A": PersAFL("A"),
    "B": PersAFL("B", alpha=0.1),
    "C": PersAFL("C", strength=2.0, inner_steps=3),
}
every_option = pytest.mark.parametrize("option", OPTIONS)
SIZES = (8, 6, 7, 6)


class Arrivals(pl.Callback):
    """Notes time, client, version read, staleness and w of every arrival."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def on_aggregate_end(self, trainer: Any, pl_module: Any) -> None:
        for job in trainer.federated_loop.jobs:
            staleness = trainer.current_epoch - job.version
            self.rows.append((job.time, job.client, job.version, staleness, pl_module.w.item()))


def test_arrivals_are_those_of_two_clients_by_hand():
    """Durations 1 and 3, f_i = (w - b_i)^2 / 2 with b = (0, 4), steps of .5, beta .5, from 2."""
    arrivals = Arrivals()
    fit(
        Quadratic(2.0, lr=0.5), PersAFL("A", beta=0.5), rounds=6, callbacks=[arrivals],
        datamodule=scalars([1.0, 1.0], [0.0, 4.0]),
        federation={"schedule": Buffered(buffer=1, delays=[1.0, 3.0])},
    )  # fmt: skip
    assert arrivals.rows == [
        (1, 0, 0, 0, 1.5),
        (2, 0, 1, 0, 1.125),
        (3, 0, 2, 0, 0.84375),
        (3, 1, 0, 3, 1.34375),
        (4, 0, 4, 0, 1.0078125),
        (5, 0, 5, 0, 0.755859375),
    ]


@every_option
def test_equal_durations_and_a_buffer_of_all_are_rounds_bit_for_bit(option):
    found = []
    for schedule in (Buffered(buffer=4, delays=2.0), Synchronous(delays=2.0), None):
        module = net(norm=True, dropout=0.3)
        fit(module, OPTIONS[option], rounds=3, datamodule=data(SIZES),
            federation={"schedule": schedule, "local_steps": 3})  # fmt: skip
        found.append(state(module))
    assert same(found[0], found[1])
    assert same(found[1], found[2])


class Seen(Net):
    """Notes the first inputs of every batch, by client."""

    first: list[tuple[int, torch.Tensor]] = []  # noqa: RUF012

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        loop = self.trainer.federated_loop
        (job,) = loop.jobs
        Seen.first.append((job.client, batch[0][0].clone()))


def test_without_a_client_delays_and_batches_of_all_others_stay():
    def events(held_out: int) -> tuple[list[tuple[int, float]], list[tuple[int, torch.Tensor]]]:
        times: list[tuple[int, float]] = []

        class Times(pl.Callback):
            def on_aggregate_end(self, trainer: Any, pl_module: Any) -> None:
                times.extend((j.client, j.time) for j in trainer.federated_loop.jobs)

        Seen.first.clear()
        fit(
            net(module=Seen), PersAFL("A"), rounds=12, callbacks=[Times()],
            datamodule=data((8, 6, 7, 6, 9), held_out_clients=held_out),
            federation={"schedule": Buffered(1, Exponential([1.0, 3.0, 2.0, 1.0, 2.0]))},
        )  # fmt: skip
        return times, list(Seen.first)

    whole, batches = events(0)
    less, others = events(1)
    (gone,) = {client for client, _ in whole} - {client for client, _ in less}
    end = min(whole[-1][1], less[-1][1])
    assert [e for e in whole if e[0] != gone and e[1] <= end] == [e for e in less if e[1] <= end]
    for client in {client for client, _ in less}:
        one, two = ([x for c, x in log if c == client] for log in (batches, others))
        count = min(len(one), len(two))
        assert count > 1
        assert all(torch.equal(a, b) for a, b in zip(one[:count], two[:count], strict=True))


def run(option: str, **kwargs: Any) -> Any:
    """Fit with exponential delays, one arrival a commit."""
    settings = {"schedule": Buffered(1, Exponential([1.0, 5.0, 1.0, 2.0])),
                **kwargs.pop("federation", {})}  # fmt: skip
    module = kwargs.pop("module", None) or net(norm=True, dropout=0.3, lr_milestones=())
    return fit(
        module, OPTIONS[option], federation=settings, datamodule=data(SIZES),
        **{"rounds": 6, **kwargs},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "event", "commit"),
    [("A", "on_client_end", 3), ("B", "on_aggregate_end", 3), ("C", "on_client_end", 1)],
)
def test_a_run_killed_between_two_events_resumes_to_the_same_bits(option, event, commit, tmp_path):
    whole = run(option)
    with pytest.raises(Stop):
        run(option, folder=tmp_path, callbacks=[StopAt(event, commit)])
    again = run(option, folder=tmp_path, ckpt="last", module=net(seed=9, norm=True, dropout=0.3,
                                                                 lr_milestones=()))  # fmt: skip
    assert same(state(again.lightning_module), state(whole.lightning_module))


@every_option
def test_two_workers_give_the_bits_of_one(option):
    settings = {"schedule": Buffered(2, Exponential([1.0, 5.0, 1.0, 2.0]))}
    one = run(option, federation=settings)
    two = run(option, federation=settings, devices=2, accelerator="cpu", strategy="ddp_fork")
    assert same(state(one.lightning_module), state(two.lightning_module))


@every_option
@pytest.mark.parametrize("policy", ["skip", "retry"])
@pytest.mark.filterwarnings("ignore:client 2, round 1")
def test_a_client_that_fails_leaves_no_trace(option, policy):
    """Of the four updates of a commit; `Faulty` fails in client 2 of the second one."""
    settings = {"schedule": Buffered(4, 1.0), "on_client_failure": policy}
    module = net(module=Faulty, at=(1,))
    run(option, module=module, federation=settings, rounds=3)
    assert module.counts.seen >= 1
    found = state(module)
    assert all(torch.isfinite(value).all() for value in found.values())
    whole = net(module=Faulty)
    run(option, module=whole, federation={"schedule": Buffered(4, 1.0)}, rounds=3)
    assert same(found, state(whole)) == (policy == "retry")
