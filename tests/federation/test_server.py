"""The server's side of a round: what merges, is compressed, is counted, and what it trains."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import FedAdam, FedAvg, FedBABU, FederatedTrainer, LocalOnly
from fedlightning.algorithms import SCAFFOLD, Algorithm, ClientUpdate, ServerData
from fedlightning.algorithms.aggregation import CoordinateMedian, Krum, TrimmedMean
from fedlightning.core.state import State
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation import Federation
from fedlightning.federation.server import Server
from fedlightning.federation.uplink import Int8, TopK, num_bytes
from tests.toys import Net, data, fit, loop_of, net, same, state

SIZES = (8, 6, 7, 6)


class Attacker(pl.Callback):
    """Client 1 sends something else than what it has trained."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_client_end(self, trainer: Any, module: Any, update: ClientUpdate) -> None:
        if update.client == 1:
            for value in update.state.values():
                value.mul_(self.factor)


class Updates(pl.Callback):
    """Notes what the trainer says of each client."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(dict(outputs))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[key] - other[key]).norm()) for key in one)


def test_a_stale_update_moves_weights_by_its_change_and_statistics_towards_its_own() -> None:
    """By hand: 2 + 0.5 (0.5 - 0) and 0.1 + 0.5 (0.2 - 0.1); by its change, 0.1 + 0.5 (0.2 - 1)."""
    model = {"w": torch.tensor([0.0]), "var": torch.tensor([1.0])}
    server = Server(FedAvg(), num_training_clients=2, staleness_weight=lambda staleness: 0.5)
    server.start(model, shared=["w", "var"], parameters=["w"], trained=["w"])
    server.aggregate()
    server.commit(pending={0})
    model["w"].fill_(2.0)
    model["var"].fill_(0.1)
    trained = {"w": torch.tensor([0.5]), "var": torch.tensor([0.2])}
    server.receive(ClientUpdate(0, trained, 1, version=0))
    merged = server.aggregate()
    assert float(merged["w"]) == 2.25
    assert float(merged["var"]) == pytest.approx(0.15)


@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean(0.25), Krum(num_byzantine=0)])
def test_a_robust_rule_withstands_an_attacker_that_the_mean_does_not(rule: Any) -> None:
    fair, robust, naive = net(), net(), net()
    fit(fair, rounds=2)
    fit(robust, rounds=2, callbacks=[Attacker(1e3)], federation={"aggregator": rule})
    fit(naive, rounds=2, callbacks=[Attacker(1e3)])
    assert distance(state(robust), state(fair)) < 2 < 100 < distance(state(naive), state(fair))


def test_the_median_is_that_of_the_clients_models() -> None:
    seen: list[State] = []

    class Keep(pl.Callback):
        def on_client_end(self, trainer: Any, module: Any, update: ClientUpdate) -> None:
            seen.append({key: value.clone() for key, value in update.state.items()})

    module = net()
    fit(module, rounds=1, callbacks=[Keep()], federation={"aggregator": CoordinateMedian()})
    for key, value in state(module).items():
        middle = torch.stack([one[key] for one in seen]).sort(dim=0).values[1:3].mean(dim=0)
        torch.testing.assert_close(value, middle)


def test_a_rule_that_the_cohort_cannot_meet_is_refused_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match=r"Krum needs n >= 2f \+ 3 = 9 .* gives 4"):
        fit(net(), federation={"aggregator": Krum(num_byzantine=3)})
    with pytest.raises(ConfigError, match=r"gives 8"):
        Federation(cohort_size=8, aggregator=Krum(num_byzantine=3))


def test_a_rule_whose_condition_fails_during_the_run_ends_it() -> None:
    class Picky(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if len(batch[0]) == 2:
                raise ValueError("too few")
            return super().training_step(batch, batch_idx)

    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(FederationError, match="Krum needs n >= 2f"),
    ):
        fit(
            net(module=Picky),
            datamodule=data((8, 7, 7, 6, 6)),
            federation={"aggregator": Krum(1), "on_client_failure": "skip"},
        )


def test_an_algorithm_with_its_own_aggregate_cannot_take_an_aggregator() -> None:
    class Last(Algorithm):
        def aggregate(self, updates: Any) -> State:  # type: ignore[override]
            return [{k: v.clone() for k, v in update.state.items()} for update in updates][-1]

    fit(net(), Last(), rounds=1)
    with pytest.raises(ConfigError, match="Last has its own aggregate"):
        Federation(algorithm=Last(), aggregator=CoordinateMedian())


def test_where_updates_are_merged_they_know_what_their_clients_received() -> None:
    class Changes(Algorithm):
        """FedAvg, as the mean of changes."""

        def aggregate(self, updates: Any) -> State:  # type: ignore[override]
            changes: list[State] = []
            for update in updates:
                received = update.received
                changes.append({key: value - received[key] for key, value in update.state.items()})
            return {k: received[k] + sum(c[k] for c in changes) / len(changes) for k in received}

    plain, changed = net(), net()
    fit(plain, FedAvg(weights="uniform"), rounds=2)
    fit(changed, Changes(), rounds=2)
    for key, value in state(plain).items():
        torch.testing.assert_close(state(changed)[key], value)


@pytest.mark.parametrize("name", ["aggregator", "compression"])
def test_what_is_not_shared_cannot_be_merged_or_compressed(name: str) -> None:
    value = CoordinateMedian() if name == "aggregator" else Int8()
    with pytest.raises(ConfigError, match=f"federation.{name}: LocalOnly shares nothing"):
        Federation(algorithm=LocalOnly(), **{name: value})  # type: ignore[arg-type]


# -- bytes ---------------------------------------------------------------------------------------


def test_bytes_are_those_of_what_is_shared() -> None:
    updates = Updates()
    module = net()
    built = fit(module, FedBABU(), rounds=1, callbacks=[updates])
    body = num_bytes({key: module.state_dict()[key] for key in module.part_keys("body")})
    assert [seen["bytes_up"] for seen in updates.seen] == [body] * 4
    assert built.callback_metrics["communication/bytes_up"] == 4 * body
    assert built.callback_metrics["communication/bytes_down"] == 4 * body


def test_control_variates_double_the_bytes() -> None:
    plain = fit(net(), FedAvg(), rounds=1).callback_metrics
    both = fit(net(), SCAFFOLD(), rounds=1).callback_metrics
    for name in ("communication/bytes_up", "communication/bytes_down"):
        assert both[name] == 2 * plain[name]


def test_who_shares_nothing_sends_nothing() -> None:
    assert fit(net(), LocalOnly(), rounds=1).callback_metrics["communication/bytes_up"] == 0


# -- compression ---------------------------------------------------------------------------------


def wide() -> Any:
    class Wide(Net):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.body = torch.nn.Sequential(torch.nn.Linear(4, 400), torch.nn.ReLU())
            self.head = torch.nn.Linear(400, 3)

    return net(module=Wide, lr_milestones=())


def test_int8_sends_a_fourth_and_hardly_changes_the_model() -> None:
    exact, small = wide(), wide()
    plain = fit(exact, rounds=2).callback_metrics["communication/bytes_up"]
    packed = fit(small, rounds=2, federation={"compression": Int8()})
    assert packed.callback_metrics["communication/bytes_up"] < 0.3 * plain
    assert packed.callback_metrics["communication/bytes_down"] == plain
    assert distance(state(small), state(exact)) < 0.05 * distance(state(wide()), state(exact))


def test_what_was_not_sent_is_kept_for_the_next_time(tmp_path: Any) -> None:
    module = wide()
    built = fit(module, rounds=1, federation={"compression": TopK(0.01)})
    kept = loop_of(built).personal.get(2)
    assert kept is not None
    assert any(float(value.abs().sum()) for value in kept.values())
    assert loop_of(built).personal_model(2) == {}  # a residual makes no model of the client's own

    whole, part = wide(), wide()
    settings: dict[str, Any] = {"federation": {"compression": TopK(0.01)}}
    fit(whole, rounds=3, **settings)
    fit(part, rounds=1, folder=tmp_path, **settings)
    fit(part, rounds=3, folder=tmp_path, ckpt="last", **settings)
    assert same(state(part), state(whole))


def test_buffers_are_not_compressed() -> None:
    module = net(norm=True)
    fit(
        module, rounds=2, datamodule=data(SIZES), federation={"compression": TopK(0.01)}
    )  # fmt: skip
    assert float(module.state_dict()["body.1.running_var"].min()) > 0
    assert not torch.equal(module.state_dict()["body.1.running_mean"], torch.zeros(5))


# -- the server's own training -------------------------------------------------------------------


def test_the_server_trains_what_clients_train() -> None:
    alone, helped = net(), net()
    start = state(alone)
    fit(alone, FedBABU(), rounds=2)
    fit(helped, FedBABU() + ServerData(0.5), rounds=2)
    assert not same(state(alone), state(helped))
    assert all(torch.equal(state(helped)[key], start[key]) for key in helped.part_keys("head"))


def test_the_server_may_train_one_part_alone() -> None:
    """One turn of every client, then the server's head: the body is that of clients alone."""
    alone, helped = net(), net()
    fit(alone, FedAvg(), rounds=1)
    fit(helped, FedAvg() + ServerData(0.5, part="head"), rounds=1)
    changed = [
        key for key in state(alone) if not torch.equal(state(alone)[key], state(helped)[key])
    ]
    assert changed == ["head.weight", "head.bias"]
    with pytest.raises(ConfigError, match="the server cannot train part 'head' where clients"):
        FedBABU() + ServerData(0.5, part="head")


def test_the_servers_training_is_the_same_in_every_run_and_goes_on(tmp_path: Any) -> None:
    algorithm = FedAdam() + ServerData(0.4, epochs=2)
    whole, part = net(lr_milestones=()), net(lr_milestones=())
    fit(whole, algorithm, rounds=3)
    fit(part, algorithm, rounds=1, folder=tmp_path)
    fit(part, algorithm, rounds=3, folder=tmp_path, ckpt="last")
    assert same(state(part), state(whole))


def test_a_servers_training_that_fails_is_named() -> None:
    with pytest.raises(FederationError, match="round 0, the server's own training: ValueError"):
        fit(net(norm=True), FedAvg() + ServerData(0.2), datamodule=data(SIZES))


def test_a_server_needs_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match=r"fraction=0\.001 of 26 training examples is none"):
        fit(net(), FedAvg() + ServerData(0.001))


def test_a_server_step_that_explodes_is_refused() -> None:
    module = net()
    with pytest.raises(FederationError, match="non-finite after the step of ServerAdam"):
        fit(module, FedAdam(lr=1e38, tau=1e-30, beta1=0.0), rounds=2)
    assert isinstance(module.trainer, FederatedTrainer)
