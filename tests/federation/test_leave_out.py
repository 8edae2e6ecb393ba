"""Clients that are struck from cohorts: nothing changes for all others."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl

from fedlightning import SCAFFOLD, FedAvg, Federation
from fedlightning.errors import ConfigError
from fedlightning.federation import Buffered
from fedlightning.federation.sampling import FixedCohorts
from tests.algorithms.cases import everything
from tests.toys import data, loop_of, net, same, state, trainer

SIZES = (8, 6, 7, 6)
COHORTS = [(0, 1, 3), (3, 2, 0), (1, 2, 3)]


class Batches(pl.Callback):
    """Notes the clients of each round and the inputs that they meet."""

    def __init__(self) -> None:
        self.met: dict[tuple[int, int], list[float]] = {}

    def on_local_loss(self, trainer: Any, module: Any, context: Any, batch: Any, loss: Any) -> None:
        place = trainer.current_epoch, context.client
        self.met.setdefault(place, []).append(float(batch[0].sum()))


def run(module: Any = None, cohorts: Any = COHORTS, **federation: Any) -> tuple[Any, Batches]:
    seen = Batches()
    built = trainer(
        federation.pop("algorithm", FedAvg()), cohort=3, rounds=3, federation=federation,
        callbacks=[seen],
    )  # fmt: skip
    if cohorts is not None:
        loop_of(built).cohort = cohorts.__getitem__
    built.fit(module or net(dropout=0.3), datamodule=data(SIZES))
    return built, seen


@pytest.mark.parametrize("algorithm", [FedAvg(), SCAFFOLD()], ids=lambda a: a.name)
def test_a_run_is_that_with_cohorts_without_the_client(algorithm):
    struck, seen = run(algorithm=algorithm, leave_out=[1])
    by_hand, _ = run(algorithm=algorithm, cohorts=[(0, 3), (3, 2, 0), (2, 3)])
    assert same(everything(struck), everything(by_hand))
    assert {client for _, client in seen.met} == {0, 2, 3}


def test_all_others_meet_in_the_same_rounds_with_the_same_batches():
    _, whole = run(cohorts=None)  # drawn
    _, struck = run(cohorts=None, leave_out=[2])
    others = {place: batches for place, batches in whole.met.items() if place[1] != 2}
    assert struck.met == others
    assert len(others) < len(whole.met)


def test_a_round_of_which_nobody_is_left_changes_nothing():
    states: list[Any] = []

    class Watching(pl.Callback):
        def on_aggregate_end(self, trainer: Any, module: Any) -> None:
            states.append(state(module))

    module = net()
    sampler = FixedCohorts([[0], [1], [0]])
    built = trainer(cohort=1, rounds=3, callbacks=[Watching()],
                    federation={"sampler": sampler, "leave_out": [1]})  # fmt: skip
    built.fit(module, datamodule=data(SIZES))
    assert same(states[0], states[1])
    assert not same(states[1], states[2])
    assert built.current_epoch == 3


def test_other_schedules_leave_out_the_same_way():
    _, whole = run(cohorts=None, schedule=Buffered(buffer=2))
    _, struck = run(cohorts=None, schedule=Buffered(buffer=2), leave_out=[0])
    assert set(struck.met) == {place for place in whole.met if place[1] != 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [(3, "must be a list of client ids, got 3"), ([-1], "must be an integer >= 0, got -1")],
)
def test_what_is_no_list_of_clients_is_refused(given, message):
    with pytest.raises(ConfigError, match=f"federation.leave_out {message}"):
        Federation(leave_out=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [([9], "client 9 does not train; .* are 4, from 0 to 3"), ([0, 1, 2, 3], "nobody is left")],
)
def test_clients_that_do_not_train_and_all_that_do_are_refused(given, message):
    with pytest.raises(ConfigError, match=f"federation.leave_out: {message}"):
        run(leave_out=given)
