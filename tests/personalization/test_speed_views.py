"""Clients whose updates take long are reported apart from the others."""

from __future__ import annotations

import csv

import pytest

from fedlightning import Buffered, FedAvg, PersonalizationCallback, Synchronous
from fedlightning.core.views import EvaluationView
from fedlightning.federation import ByExamples, Exponential
from fedlightning.federation.jobs import Population
from fedlightning.personalization.speed_views import views_by_speed
from tests.toys import data, fit, net

EXAMPLES = (8, 6, 7, 60)
CLIENTS = Population(0, range(4), 4, lambda commit: (), num_examples=EXAMPLES.__getitem__)
MAIN = [EvaluationView("", range(4)), EvaluationView("", range(4), "val")]


def speeds(schedule, views=MAIN):
    return {view.name: list(view.clients) for view in views_by_speed(schedule, CLIENTS, views)}


def test_slow_is_more_than_twice_the_median():
    assert speeds(Buffered(1, [1.0, 1.0, 2.0, 2.1])) == {}  # the median is 1.5
    assert speeds(Buffered(1, [1.0, 1.0, 1.0, 2.1])) == {"slow": [3], "fast": [0, 1, 2]}
    assert speeds(Synchronous([3.0, 1.0, 1.0, 3.0])) == {}
    assert speeds(Synchronous([9.0, 1.0, 1.0, 1.0])) == {"slow": [0], "fast": [1, 2, 3]}
    assert speeds(Buffered(1, ByExamples(0.1))) == {"slow": [3], "fast": [0, 1, 2]}
    assert speeds(Buffered(1, Exponential(5.0))) == {}, "they are alike in the mean"
    assert speeds(Synchronous()) == {}


def test_a_view_of_that_name_is_left_as_it_is():
    own = [*MAIN, EvaluationView("slow", [0])]
    assert speeds(Buffered(1, [9.0, 1.0, 1.0, 1.0]), own) == {}


def test_they_have_metrics_and_tables_of_their_own(tmp_path):
    callback = PersonalizationCallback(epochs=1)
    built = fit(
        net(), FedAvg(), folder=tmp_path, datamodule=data(), callbacks=[callback],
        federation={"schedule": Buffered(2, [1.0, 9.0, 1.0, 1.0])},
    )  # fmt: skip
    by_client = {result.client: result for result in callback.results}
    assert set(by_client) == {0, 1, 2, 3}
    shown = {k: float(v) for k, v in built.callback_metrics.items()}
    assert shown["slow/personalized/acc"] == by_client[1].after["acc"]
    fast = sum(by_client[client].before["acc"] for client in (0, 2, 3)) / 3
    assert shown["fast/initial/acc"] == pytest.approx(fast)
    (table,) = tmp_path.rglob("slow_clients.csv")
    with table.open() as file:
        assert [row["client_id"] for row in csv.DictReader(file)] == ["1"]
